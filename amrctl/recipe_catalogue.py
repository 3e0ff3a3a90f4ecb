"""What there is to choose from: the shipped recipes, and the components by slot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from amrctl import registry
from amrctl.recipe import shipped


class Summary(NamedTuple):
    """A shipped recipe: its name, where it was published, and what it is in one sentence."""

    name: str
    source: str
    description: str


def summaries() -> list[Summary]:
    """All shipped recipes, by name. The description is the first sentence of the file's opening comment."""
    return [_summary(name, path) for name, path in shipped().items()]


def _summary(name: str, path: Path) -> Summary:
    text = path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in _opening_comment(text))
    first = re.split(r"(?<=[a-z0-9)])\.\s", comment, maxsplit=1)[0].rstrip(".")
    return Summary(name, str(yaml.safe_load(text).get("source", "")), first)


def _opening_comment(text: str) -> list[str]:
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def components() -> dict[str, dict[str, dict[str, Any]]]:
    """Slot → kind → option → default (JSON values; the text "required" where there is none)."""
    return {slot: {kind: _options(slot, kind) for kind in registry.kinds(slot)} for slot in registry.SLOTS}


def _options(slot: str, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, field in registry.find(slot, kind).config.model_fields.items():
        if key == "kind":
            continue
        value = "required" if field.is_required() else field.get_default(call_default_factory=True)
        options[key] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return options
