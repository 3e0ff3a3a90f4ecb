"""The checkpoints of a soup: opened without their tensors, compared, and read one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from amrctl import provenance
from amrctl.errors import CheckpointError
from amrctl.model.checkpoint import read_metadata
from amrctl.progress import Reporter

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATING = ("F64", "F32", "F16", "BF16")
DTYPES = dict(zip(FLOATING, (torch.float64, torch.float32, torch.float16, torch.bfloat16), strict=True))


@dataclass(frozen=True)
class Source:
    """One checkpoint: where it lies, and what it holds."""

    path: Path
    sha256: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]  # key → dtype as safetensors spells it, shape
    filled: tuple[str, ...] = ()  # parts that it lacks and is the identity in

    @property
    def ancestry(self) -> set[str]:
        """Hashes of this file and of all weights it is known to have grown from."""
        return {self.sha256, *(self.metadata["provenance"].get("ancestry") or [])}


def open_source(path: Path) -> Source:
    """Read what is around the tensors. Raises `CheckpointError` for what cannot be averaged."""
    if path.suffix in (".ckpt", ".pth", ".pt"):
        raise CheckpointError(f"{path} is not safetensors; bring it over with amrctl convert first")
    metadata = read_metadata(path)
    with safetensors.safe_open(str(path), framework="pt") as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        shapes = {key: (str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    for key, (dtype, _) in shapes.items():
        if dtype not in BYTES:
            raise CheckpointError(f"{path}: '{key}' has numbers of type {dtype}, which cannot be averaged")
    return Source(path, provenance.sha256(path), metadata, shapes)


def filled_in(
    source: Source, sources: Sequence[Source], identity: Mapping[str, Collection[str]], report: Reporter
) -> Source:
    """The source with the `identity` parts noted that others have and it has no tensor of."""

    def has(which: Source, part: str) -> bool:
        return any(key.startswith(f"{part}.") for key in which.shapes)

    lacking = [p for p in identity if not has(source, p) and any(has(other, p) for other in sources)]
    for part in lacking:
        report.note(f"{source.path} has no {part}; it counts as the part before its training, the identity")
    return replace(source, filled=tuple(lacking))


def require_alike(sources: Sequence[Source]) -> None:
    """The same keys, shapes and kinds of numbers in all, but for what is filled.

    Raises `CheckpointError` that names key and file.
    """
    first = sources[0]
    for other in sources[1:]:
        for poor, rich in ((other, first), (first, other)):
            lacking = [key for key in rich.shapes if key not in poor.shapes and not is_filled(poor, key)]
            if lacking:
                raise CheckpointError(
                    f"{poor.path} has no '{lacking[0]}', which {rich.path} has ({len(lacking)} such keys); "
                    "a soup needs checkpoints of one architecture"
                )
    known: dict[str, tuple[str, tuple[int, ...], Path]] = {}
    for other in sources:
        for key, (its_dtype, its_shape) in other.shapes.items():
            dtype, shape, path = known.setdefault(key, (its_dtype, its_shape, other.path))
            if its_shape != shape:
                raise CheckpointError(
                    f"'{key}' is {shape} in {path} and {its_shape} in {other.path}; "
                    "a soup needs checkpoints of one architecture"
                )
            if its_dtype != dtype and not {dtype, its_dtype} <= set(FLOATING):
                raise CheckpointError(f"'{key}' is {dtype} in {path} and {its_dtype} in {other.path}")


def is_filled(source: Source, key: str) -> bool:
    """Whether a tensor belongs to a part that the source lacks."""
    return any(key.startswith(f"{part}.") for part in source.filled)


def tell(sources: Sequence[Source], report: Reporter) -> None:
    """Report what is unusual: no common ancestor, other recipes, other features, the same file twice."""
    first = sources[0]
    if not set.intersection(*(source.ancestry for source in sources)):
        report.note(
            "these checkpoints have no known common ancestor: weights that were not grown from one "
            "another rarely average well; compare the soup with its parts on validation"
        )
    for other in sources[1:]:
        ours, theirs = first.metadata["recipe"], other.metadata["recipe"]
        differing = [key for key in ours if key != "stage" and ours[key] != theirs.get(key)]
        if differing:
            report.note(f"{first.path} and {other.path} differ in their recipes: {', '.join(differing)}")
        if first.metadata["features"] != other.metadata["features"]:
            report.note(f"{first.path} and {other.path} were trained on different features")
        if first.metadata["rounding"] != other.metadata["rounding"]:
            report.note(f"{other.path} rounds windows differently; the soup rounds as {first.path}")
    hashes = [source.sha256 for source in sources]
    if len(set(hashes)) < len(hashes):
        report.note("some of these checkpoints are the same file content")


def load(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """Some tensors of a safetensors file."""
    # opened anew each time: a mapped file would stay in memory page by page
    with safetensors.safe_open(str(path), framework="pt") as opened:
        return {key: opened.get_tensor(key).clone() for key in keys}
