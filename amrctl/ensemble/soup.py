"""Soups: one checkpoint whose weights are the weighted mean of several (Wortsman et al., ICML 2022).

Sums are float64. Tensors are read, averaged and written a few after the others, so memory holds one large
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl import provenance
from amrctl.ensemble.ingredients import BYTES, filled_in, open_source, require_alike, tell
from amrctl.ensemble.mix import Mix
from amrctl.errors import CheckpointError
from amrctl.model.checkpoint import FORMAT, KEY
from amrctl.progress import SILENT, Reporter
from amrctl.run_folder import find_checkpoints

_WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint of a soup. `weight`: its share, 0..1 (of Fisher soups the mean over all weights);
    `distance`: from the soup, as a fraction of
    the soup's norm (L2 over all weights); `metrics`: its own validation, percent."""

    path: Path
    sha256: str
    weight: float
    distance: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Soup:
    """What was made. `farthest`: positions of the two ingredients that lie farthest apart, and their
    distance as a fraction of the soup's norm; `method`: how the shares were found, plain JSON types."""

    path: Path
    ingredients: tuple[Ingredient, ...]
    tensors: int
    farthest: tuple[int, int, float]
    method: Mapping[str, Any] = field(default_factory=dict)

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
            **self.method,
        }


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
    paths = several(inputs, allow_incomplete=allow_incomplete)
    shares = _shares(weights, len(paths))
    counted = [path for path, share in zip(paths, shares, strict=True) if share > 0]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        sources = list(pool.map(open_source, counted))
    for path, share in zip(paths, shares, strict=True):
        if share == 0:
            report.note(f"{path} has weight 0 and is left out")
    sources = [filled_in(source, sources, identity or {}, report) for source in sources]
    lead = next((i for i, source in enumerate(sources) if not source.filled), None)
    if lead is None:
        raise CheckpointError(
            "none of the checkpoints has every part, so that no recipe describes the soup; average those "
            "that have a part in common first"
        )
    require_alike(sources)
    zero = {f"{part}.{name}" for part, names in (identity or {}).items() for name in names}
    mix = Mix(sources, [share for share in shares if share > 0], lead=lead, zero=zero)
    return write_soup(mix, out, overwrite=overwrite, report=report)


def several(inputs: Sequence[Path | str], *, allow_incomplete: bool = False) -> list[Path]:
    """The checkpoints that `inputs` stand for, at least two. Raises `CheckpointError`."""
    paths = [p for given in inputs for p in find_checkpoints(given, allow_incomplete=allow_incomplete)]
    if len(paths) < 2:
        raise CheckpointError(f"a soup needs at least two checkpoints, this is {len(paths)}")
    return paths


def write_soup(
    mix: Mix,
    out: Path,
    *,
    overwrite: bool = False,
    metrics: Mapping[str, float] | None = None,
    method: Mapping[str, Any] | None = None,
    report: Reporter = SILENT,
) -> Soup:
    """Write the mean of `mix`. `metrics`: its validation, percent, where there was one; `method`: how the
    shares were found, for the metadata. Raises as `make_soup`."""
    tell(mix.sources, report)
    shapes = mix.sources[mix.lead].shapes
    size = len(mix.sources)
    distances, products, square = np.zeros(size), np.zeros((size, size)), 0.0
    with provenance.writing(out, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
        _write_header(stream, shapes, mix.keys, _metadata(mix, dict(metrics or {}), dict(method or {})))
        with report.bar("soup", len(mix.keys), unit="tensors") as bar:
            for mixed in mix.parts():
                for tensor in mixed.tensors.values():
                    stream.write(_bytes(tensor))
                distances, products = distances + mixed.distances, products + mixed.products
                square += mixed.square
                bar.advance(len(mixed.tensors))
    return _summary(out, mix, distances, products, math.sqrt(square), dict(method or {}))


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
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


def _write_header(
    stream: BinaryIO, shapes: Mapping[str, tuple[str, tuple[int, ...]]], order: Sequence[str], metadata: str
) -> None:
    """The head of a safetensors file: its length (8 bytes), then JSON, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {KEY: metadata}}
    offset = 0
    for key in order:
        dtype, shape = shapes[key]
        end = offset + math.prod(shape) * BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _metadata(mix: Mix, metrics: Mapping[str, float], method: Mapping[str, Any]) -> str:
    first = mix.sources[mix.lead].metadata
    parents = [
        {"path": str(s.path), "sha256": s.sha256, "weight": w}
        | ({"identity": list(s.filled)} if s.filled else {})
        for s, w in zip(mix.sources, mix.shares, strict=True)
    ]
    trained_on: dict[str, Any] = {}
    ancestry: dict[str, None] = {source.sha256: None for source in mix.sources}
    for source in mix.sources:
        origin = source.metadata["provenance"]
        trained_on.update({entry["sha256"]: entry for entry in origin.get("trained_on") or []})
        ancestry.update(dict.fromkeys(origin.get("ancestry") or []))
    kept = {key: first["provenance"][key] for key in ("parameters", "encoders") if key in first["provenance"]}
    content = {
        "format": FORMAT,
        "recipe": first["recipe"],
        "features": first["features"],
        "epoch": first["epoch"],
        "metrics": metrics,
        "provenance": {
            **provenance.origin(),
            "operation": "soup",
            "parents": parents,
            "ancestry": list(ancestry),
            "trained_on": list(trained_on.values()),
            **kept,
            **method,
        },
        "rounding": first["rounding"],
    }
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def _summary(
    out: Path,
    mix: Mix,
    distances: npt.NDArray[np.float64],
    products: npt.NDArray[np.float64],
    norm: float,
    method: Mapping[str, Any],
) -> Soup:
    """`distances` and `products` as in `Mixed`, summed over all tensors; `norm` of the soup."""
    scale = norm or 1.0
    squares = np.diag(products)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0)) / scale
    first, second = np.unravel_index(int(apart.argmax()), apart.shape)
    if first == second:  # all alike, or one alone
        second = np.intp(len(apart) - 1)
    ingredients = tuple(
        Ingredient(s.path, s.sha256, w, float(d), s.metadata.get("metrics") or {})
        for s, w, d in zip(mix.sources, mix.shares, np.sqrt(distances) / scale, strict=True)
    )
    return Soup(out, ingredients, len(mix.keys), (int(first), int(second), float(apart.max())), method)
