"""Components by slot and name.

A slot is a package folder; every module in it is imported on first use, and each component
registers itself there with `@component(slot, kind, Config)`. Nothing else lists them: adding a
component is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from amrctl.errors import RecipeError, near

SLOTS: dict[str, str] = {
    "tokens": "amrctl.model.tokens",
    "fusion": "amrctl.model.fusion",
    "encoder": "amrctl.model.encoder",
    "decoder": "amrctl.model.decoder",
    "hooks": "amrctl.model.decoder",
    "heads": "amrctl.model.heads",
    "refine": "amrctl.model.refine",
    "auxiliary": "amrctl.model.auxiliary",
    "losses": "amrctl.losses",
    "retrieval-audio": "amrctl.encoders.dual.audio",
    "retrieval-text": "amrctl.encoders.dual.text",
    "retrieval-pooling": "amrctl.encoders.dual.pooling",
    "retrieval-losses": "amrctl.losses.retrieval",
    "score": "amrctl.inference.scores",
    "optimizer": "amrctl.training.optimizers",
    "schedule": "amrctl.training.schedules",
    "audio-encoder": "amrctl.encoders",
    "text-encoder": "amrctl.encoders",
}


class ComponentConfig(BaseModel):
    """Base of every component's options: unknown keys are faults, `kind` names the component."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str


@dataclass(frozen=True)
class Component:
    """One registered idea: where it plugs in, its options, and what builds it."""

    slot: str
    kind: str
    config: type[ComponentConfig]
    build: Callable[..., Any]


_found: dict[tuple[str, str], Component] = {}
_scanned: set[str] = set()
T = TypeVar("T")


def component(slot: str, kind: str, config: type[ComponentConfig]) -> Callable[[T], T]:
    """Register the decorated class or function under `slot` and `kind`; a duplicate is an error."""

    def register(build: T) -> T:
        if slot not in SLOTS:
            raise ValueError(f"no slot is called {slot!r}")
        if (slot, kind) in _found:
            raise ValueError(f"{slot} component {kind!r} is registered twice")
        _found[slot, kind] = Component(slot, kind, config, build)  # type: ignore[arg-type]
        return build

    return register


def _scan(slot: str) -> None:
    package_name = SLOTS[slot]
    if package_name in _scanned:
        return
    package = importlib.import_module(package_name)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package_name}.{module.name}")
    _scanned.add(package_name)  # last: a module that fails to import must fail again, not go missing


def kinds(slot: str) -> list[str]:
    """Names of all components of a slot, sorted."""
    _scan(slot)
    return sorted(kind for where, kind in _found if where == slot)


def find(slot: str, kind: str) -> Component:
    """Return the component; raise `RecipeError` with the nearest name if there is none."""
    _scan(slot)
    entry = _found.get((slot, kind))
    if entry is None:
        raise RecipeError(f"no {slot} component is called '{kind}'{near(kind, kinds(slot))}")
    return entry
