"""Soups: one checkpoint whose weights are the weighted mean of several (Wortsman et al., ICML 2022).

Sums are float64. Tensors are read, averaged and written one after the other, so memory holds one
tensor per ingredient, whatever the size and the number of checkpoints.

A part that starts as the identity (its last layer is zero) may be missing in some ingredients, as in the
last soup of Guangzhou's report (DCASE 2026 Task 6, section 3.7): each of them counts as the part before
its training, which is zero for the tensors that make it the identity. What the part's other tensors
would hold cannot be seen there, so that they are the mean of those that exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch import Tensor

from amrctl import provenance
from amrctl.errors import CheckpointError
from amrctl.model.checkpoint import FORMAT, KEY, read_metadata
from amrctl.progress import SILENT, Reporter
from amrctl.run_folder import find_checkpoints

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATING = ("F64", "F32", "F16", "BF16")
_WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint of a soup. `weight`: its share, 0..1; `distance`: from the soup, as a fraction of
    the soup's norm (L2 over all weights); `metrics`: its own validation, percent."""

    path: Path
    sha256: str
    weight: float
    distance: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Soup:
    """What was made. `farthest`: positions of the two ingredients that lie farthest apart, and their
    distance as a fraction of the soup's norm."""

    path: Path
    ingredients: tuple[Ingredient, ...]
    tensors: int
    farthest: tuple[int, int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        first, second, distance = self.farthest
        return {
            "out": str(self.path),
            "tensors": self.tensors,
            "ingredients": [
                {**vars(i), "path": str(i.path), "metrics": dict(i.metrics)} for i in self.ingredients
            ],
            "farthest": {
                "pair": [str(self.ingredients[first].path), str(self.ingredients[second].path)],
                "distance": distance,
            },
        }


@dataclass(frozen=True)
class _Source:
    path: Path
    sha256: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]  # key → dtype as safetensors spells it, shape
    filled: tuple[str, ...] = ()  # parts that it lacks and is the identity in

    @property
    def ancestry(self) -> set[str]:
        """Hashes of this file and of all weights it is known to have grown from."""
        return {self.sha256, *(self.metadata["provenance"].get("ancestry") or [])}


def make_soup(
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] | None = None,
    identity: Mapping[str, Collection[str]] | None = None,
    allow_incomplete: bool = False,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Soup:
    """Average checkpoints into `out`.

    `inputs`: checkpoints, run folders (their best) or folders of several seeds (the best of each).
    `weights`: one per checkpoint, 0 or more, summing to 1; None: all alike. Weight 0 leaves a
    checkpoint out. Floating tensors get the mean, in the first checkpoint's dtype; integer ones must
    be equal. What is unusual (no common ancestor, other recipes) goes to `report`.

    `identity`: parts that may be missing as a whole, as prefix of their keys (`refine.cascade`) → names
    within the part of the tensors whose zeros make it the identity; recipe, features and rounding of
    the soup are then those of the first checkpoint that lacks none.

    Raises `CheckpointError` that names key and file when checkpoints are unlike, or a tensor is not
    finite; `OutputError` when `out` exists.
    """
    out = provenance.refuse_existing(out, overwrite)
    paths = [p for given in inputs for p in find_checkpoints(given, allow_incomplete=allow_incomplete)]
    shares = _shares(weights, len(paths))
    sources = [_open(path) for path, share in zip(paths, shares, strict=True) if share > 0]
    used = [share for share in shares if share > 0]
    for path, share in zip(paths, shares, strict=True):
        if share == 0:
            report.note(f"{path} has weight 0 and is left out")
    sources = [_filled(source, sources, identity or {}, report) for source in sources]
    lead = next((i for i, source in enumerate(sources) if not source.filled), None)
    if lead is None:
        raise CheckpointError(
            "none of the checkpoints has every part, so that no recipe describes the soup; average those "
            "that have a part in common first"
        )
    _require_alike(sources)
    _tell(sources, report)
    zero = {f"{part}.{name}" for part, names in (identity or {}).items() for name in names}
    shapes = sources[lead].shapes
    # by falling width of the numbers, as the format's own writer, so that all tensors lie aligned
    order = sorted(shapes, key=lambda key: (-_BYTES[shapes[key][0]], key))
    gram = np.zeros((len(sources), len(sources)))
    norm = 0.0
    with provenance.writing(out, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
        _write_header(stream, shapes, order, _metadata(sources, used, lead))
        with report.bar("soup", len(order), unit="tensors") as bar:
            for key in order:
                mixed, products, square = _average(sources, used, lead, key, zero=key in zero)
                stream.write(_bytes(mixed))
                gram, norm = gram + products, norm + square
                bar.advance()
    return _summary(out, sources, used, gram, math.sqrt(norm), len(order))


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if count < 2:
        raise CheckpointError(f"a soup needs at least two checkpoints, this is {count}")
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise CheckpointError(f"--weights: {len(weights)} numbers for {count} checkpoints; give one for each")
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise CheckpointError(f"--weights: {weight:g} is not a share; write numbers of 0 or more")
    total = math.fsum(weights)
    if abs(total - 1) > _WEIGHT_TOLERANCE:
        raise CheckpointError(f"--weights: the numbers sum to {total:g}; they must sum to 1")
    return [weight / total for weight in weights]


def _open(path: Path) -> _Source:
    if path.suffix in (".ckpt", ".pth", ".pt"):
        raise CheckpointError(f"{path} is not safetensors; bring it over with amrctl convert first")
    metadata = read_metadata(path)
    with safetensors.safe_open(str(path), framework="pt") as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        shapes = {key: (str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    for key, (dtype, _) in shapes.items():
        if dtype not in _BYTES:
            raise CheckpointError(f"{path}: '{key}' has numbers of type {dtype}, which cannot be averaged")
    return _Source(path, provenance.sha256(path), metadata, shapes)


def _filled(
    source: _Source, sources: Sequence[_Source], identity: Mapping[str, Collection[str]], report: Reporter
) -> _Source:
    """The source with the `identity` parts noted that others have and it has no tensor of."""

    def has(which: _Source, part: str) -> bool:
        return any(key.startswith(f"{part}.") for key in which.shapes)

    lacking = [p for p in identity if not has(source, p) and any(has(other, p) for other in sources)]
    for part in lacking:
        report.note(f"{source.path} has no {part}; it counts as the part before its training, the identity")
    return replace(source, filled=tuple(lacking))


def _require_alike(sources: Sequence[_Source]) -> None:
    """The same keys, shapes and kinds of numbers in all, but for what is filled; the message names key
    and file."""
    first = sources[0]
    for other in sources[1:]:
        for poor, rich in ((other, first), (first, other)):
            lacking = [key for key in rich.shapes if key not in poor.shapes and not _is_filled(poor, key)]
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
            if its_dtype != dtype and not {dtype, its_dtype} <= set(_FLOATING):
                raise CheckpointError(f"'{key}' is {dtype} in {path} and {its_dtype} in {other.path}")


def _is_filled(source: _Source, key: str) -> bool:
    return any(key.startswith(f"{part}.") for part in source.filled)


def _tell(sources: Sequence[_Source], report: Reporter) -> None:
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


def _load(source: _Source, key: str) -> Tensor:
    # opened anew for each tensor: a mapped file would stay in memory page by page
    with safetensors.safe_open(str(source.path), framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
        return tensor.clone()


def _average(
    sources: Sequence[_Source], shares: Sequence[float], lead: int, key: str, *, zero: bool
) -> tuple[Tensor, npt.NDArray[np.float64], float]:
    """The mean of one tensor, the products of all differences from the first, the mean's squared norm.

    A source that lacks the tensor has zeros for it, or, unless `zero`, the mean of those that have it.
    """
    first = _load(sources[lead], key)
    products = np.zeros((len(sources), len(sources)))
    having = [i for i, source in enumerate(sources) if key in source.shapes]
    if sources[lead].shapes[key][0] not in _FLOATING:
        for i in having:
            if not torch.equal(first, _load(sources[i], key)):
                raise CheckpointError(
                    f"'{key}' holds whole numbers that differ between {sources[lead].path} and "
                    f"{sources[i].path}"
                )
        return first, products, 0.0
    tensors = {i: _load(sources[i], key).double().reshape(-1) for i in having}
    for i, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{sources[i].path}: '{key}' holds a number that is not finite")
    if len(having) < len(sources):
        part = math.fsum(shares[i] for i in having)
        absent = first.new_zeros(first.numel(), dtype=torch.float64)
        if not zero:
            absent = _mean([tensors[i] for i in having], [shares[i] / part for i in having])
        tensors |= {i: absent.clone() for i in range(len(sources)) if i not in tensors}
    listed = [tensors[i] for i in range(len(sources))]
    mixed = _mean(listed, shares)
    base = listed[0].clone()
    for tensor in listed:
        tensor -= base
    for i, left in enumerate(listed):
        for j in range(i + 1):
            products[i, j] = products[j, i] = float(left @ listed[j])
    return mixed.to(first.dtype).reshape(first.shape), products, float(mixed @ mixed)


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """x0 + sum of w (x - x0): the mean of equal tensors is that tensor to the last bit."""
    mixed = tensors[0].clone()
    for tensor, share in zip(tensors, shares, strict=True):
        mixed.add_(tensor - tensors[0], alpha=share)
    return mixed


def _write_header(
    stream: BinaryIO, shapes: Mapping[str, tuple[str, tuple[int, ...]]], order: Sequence[str], metadata: str
) -> None:
    """The head of a safetensors file: its length (8 bytes), then JSON, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {KEY: metadata}}
    offset = 0
    for key in order:
        dtype, shape = shapes[key]
        end = offset + math.prod(shape) * _BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _metadata(sources: Sequence[_Source], shares: Sequence[float], lead: int) -> str:
    first = sources[lead].metadata
    parents = [
        {"path": str(s.path), "sha256": s.sha256, "weight": w}
        | ({"identity": list(s.filled)} if s.filled else {})
        for s, w in zip(sources, shares, strict=True)
    ]
    trained_on: dict[str, Any] = {}
    ancestry: dict[str, None] = {source.sha256: None for source in sources}
    for source in sources:
        origin = source.metadata["provenance"]
        trained_on.update({entry["sha256"]: entry for entry in origin.get("trained_on") or []})
        ancestry.update(dict.fromkeys(origin.get("ancestry") or []))
    kept = {key: first["provenance"][key] for key in ("parameters", "encoders") if key in first["provenance"]}
    content = {
        "format": FORMAT,
        "recipe": first["recipe"],
        "features": first["features"],
        "epoch": first["epoch"],
        "metrics": {},  # nobody validated the soup
        "provenance": {
            **provenance.origin(),
            "operation": "soup",
            "parents": parents,
            "ancestry": list(ancestry),
            "trained_on": list(trained_on.values()),
            **kept,
        },
        "rounding": first["rounding"],
    }
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def _summary(
    out: Path,
    sources: Sequence[_Source],
    shares: Sequence[float],
    gram: npt.NDArray[np.float64],
    norm: float,
    tensors: int,
) -> Soup:
    """Distances from `gram`, the products of all differences from the first ingredient."""
    share = np.array(shares)
    scale = norm or 1.0
    squares = np.diag(gram)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * gram, 0)) / scale
    to_soup = np.sqrt(np.maximum(squares - 2 * gram @ share + share @ gram @ share, 0)) / scale
    first, second = np.unravel_index(int(apart.argmax()), apart.shape)
    ingredients = tuple(
        Ingredient(s.path, s.sha256, w, float(d), s.metadata.get("metrics") or {})
        for s, w, d in zip(sources, shares, to_soup.tolist(), strict=True)
    )
    if first == second:  # all alike
        second = np.intp(1)
    return Soup(out, ingredients, tensors, (int(first), int(second), float(apart.max())))
