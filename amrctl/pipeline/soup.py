"""Which parts of checkpoints start as the identity: what a soup may fill where one lacks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amrctl import registry
from amrctl.errors import CheckpointError
from amrctl.model.checkpoint import read_metadata
from amrctl.model.detector import names
from amrctl.recipe import Recipe, from_dict
from amrctl.run_folder import find_checkpoints

SLOTS = ("fusion", "encoder", "heads", "refine")


def identity_parts(
    inputs: Sequence[Path | str], *, allow_incomplete: bool = False
) -> dict[str, tuple[str, ...]]:
    """Parts of these checkpoints that start as the identity: prefix of their keys → names within the
    part of the tensors that are zero then.

    A component declares them in its class attribute `identity_when_zero`. `inputs` as for
    `make_soup`. Raises `AmrctlError` kinds for what is no checkpoint of ours.
    """
    found: dict[str, tuple[str, ...]] = {}
    for given in inputs:
        for path in find_checkpoints(given, allow_incomplete=allow_incomplete):
            if path.suffix in (".ckpt", ".pth", ".pt"):
                raise CheckpointError(f"{path} is not safetensors; bring it over with amrctl convert first")
            found |= _declared(from_dict(read_metadata(path)["recipe"], where=str(path)))
    return found


def _declared(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    found = {}
    for slot in SLOTS:
        entries = getattr(recipe.model, slot)
        for name, config in zip(names(entries), entries, strict=True):
            zeros = getattr(registry.find(slot, config.kind).build, "identity_when_zero", ())
            if zeros:
                found[f"{slot}.{name}"] = tuple(zeros)
    return found
