"""Feature streams in memory, gathered into padded batches without a loop over recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl import registry
from amrctl.data.features import FeatureFile, Packed, Side, StreamInfo
from amrctl.encoders.base import AUDIO
from amrctl.errors import FeatureError
from amrctl.recipe import Recipe, Stream

_EPS = 1e-5  # of the official L2 normalisation
_CHUNK = 1 << 14  # rows that are worked on together


class FeatureSource(Protocol):
    """Where streams come from: a `FeatureFile`, or features made on the spot. Raises as that does."""

    def streams(self, side: Side) -> Mapping[str, StreamInfo]:
        """Name → description of every stream of one side."""
        ...

    def resolve(self, side: Side, name: str) -> StreamInfo:
        """The stream of that name; `auto` is the only one there is."""
        ...

    def load(self, side: Side, name: str, ids: Sequence[str] | None = None) -> Packed:
        """The rows of these ids, or of all."""
        ...


class Gathered:
    """One stream: packed rows plus how a recipe wants them (L2, cut), on the host or on a device."""

    def __init__(self, packed: Packed, info: StreamInfo, *, l2: bool, max_rows: int | None) -> None:
        self.packed, self.info = packed, info
        self.l2, self.max_rows = l2, max_rows
        rows = packed.rows if packed.rows.flags.writeable else packed.rows.copy()
        self._rows = torch.from_numpy(rows)
        self._norms = _norms(self._rows) if l2 else None

    def lengths(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows per position (after the cut), int64."""
        offsets = self.packed.offsets
        n = offsets[positions + 1] - offsets[positions]
        return n if self.max_rows is None else np.minimum(n, self.max_rows)

    @property
    def bytes(self) -> int:
        """What the rows take in memory."""
        return self._rows.nbytes + (0 if self._norms is None else self._norms.nbytes)

    def place(self, device: torch.device) -> None:
        """Keep the rows that `gather` reads on `device`."""
        self._rows = self._rows.to(device)
        if self._norms is not None:
            self._norms = self._norms.to(device)

    def gather(
        self,
        first: Tensor,
        lengths: Tensor,
        counts: npt.NDArray[np.int64],
        offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The packed rows `first .. first + lengths` of every pair, read in one go.

        `first`, `lengths` [B] int64, where the rows are; `counts`: the same lengths on the host;
        `offset` [B] int64, 0 or more: rows that each pair is rolled to the right by, cyclically.
        Returns float32 [B, longest, D], zero on padding, and the mask [B, longest] bool.
        """
        index, real = ranges(first, lengths, int(counts.max()), offset)
        rows = self._rows.index_select(0, index.flatten()).float().view(*index.shape, -1)
        if self._norms is not None:
            rows /= self._norms[index][..., None]
        return (rows.mul_(real[..., None]) if counts.min() < counts.max() else rows), real


def ranges(
    first: Tensor, lengths: Tensor, longest: int, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`first[b] + t` [B, longest] int64 for `t < lengths[b]`, and where that holds; elsewhere `first`.

    With `offset` [B], t counts from there backwards, cyclically: `(t - offset) % lengths`.
    """
    steps = torch.arange(max(longest, 1), device=first.device)
    real = steps < lengths[:, None]
    if offset is not None:
        steps = (steps - offset[:, None]) % lengths[:, None].clamp(min=1)
    return first[:, None] + steps * real, real


def _norms(rows: Tensor) -> Tensor:
    """What each row is divided by, float32 `(n,)`, without a second copy of all rows."""
    return torch.cat([part.float().norm(dim=-1) + _EPS for part in rows.split(_CHUNK)])


def load_streams(
    features: FeatureSource, recipe: Recipe, vids: Sequence[str], qids: Sequence[str]
) -> tuple[list[Gathered], list[Gathered]]:
    """Audio and text streams of a recipe, main first, with only the rows these ids need.

    Auxiliary audio streams are brought to the main stream's frames, auxiliary text streams keep
    their own tokens. Raises `FeatureError` for a missing stream or id.
    """
    if isinstance(features, FeatureFile):
        sides: tuple[Side, ...] = ("audio", "text")
        features.require({side: [s.name for s in getattr(recipe.features, side)] for side in sides})
    audio: list[Gathered] = []
    for stream in recipe.features.audio:
        info = features.resolve("audio", stream.name)
        packed = features.load("audio", info.name, vids)
        if audio:
            packed = _aligned(packed, info, audio[0].packed, audio[0].info)
        audio.append(Gathered(packed, info, l2=_l2(stream, True), max_rows=None))
    text: list[Gathered] = []
    for stream in recipe.features.text:
        info = features.resolve("text", stream.name)
        packed = features.load("text", info.name, qids)
        text.append(Gathered(packed, info, l2=_l2(stream, False), max_rows=stream.max_tokens))
    return audio, text


def _l2(stream: Stream, default: bool) -> bool:
    return default if stream.l2 is None else stream.l2


def hop_of(info: StreamInfo) -> float:
    """Seconds between frames of an audio stream (1.0 where an imported file does not say)."""
    return float(info.hop) if info.hop else 1.0


def first_centre(info: StreamInfo) -> float:
    """Where the middle of a stream's first frame lies, seconds: at 0 on the grid of an encoder that centres
    its frames, else half a window (half a hop where an imported file does not say)."""
    known = registry.find(AUDIO, info.encoder).build if info.encoder in registry.kinds(AUDIO) else None
    if getattr(known, "grid", "plain") == "centred":
        return 0.0
    return 0.5 * float(info.window or hop_of(info))


def _aligned(packed: Packed, info: StreamInfo, main: Packed, main_info: StreamInfo) -> Packed:
    """Linear interpolation at the main stream's frame centres (seconds).

    Streams whose total lengths differ by more than one frame of the coarser one are refused.
    """
    hop, main_hop = hop_of(info), hop_of(main_info)
    centre, main_centre = first_centre(info), first_centre(main_info)
    same = (hop, centre) == (main_hop, main_centre)
    if same and packed.index == main.index and np.array_equal(packed.offsets, main.offsets):
        return packed
    pieces: list[npt.NDArray[Any]] = []
    for vid in main.index:
        rows, wanted = packed.get(vid), len(main.get(vid))
        gap = abs(len(rows) * hop - wanted * main_hop)
        if gap > max(hop, main_hop) + 1e-6:
            raise FeatureError(
                f"recording {vid}: audio stream '{info.name}' covers {len(rows) * hop:g} s, "
                f"'{main_info.name}' covers {wanted * main_hop:g} s; extract them from the same audio"
            )
        if len(rows) == wanted and same:
            pieces.append(rows)
            continue
        at = ((main_centre + np.arange(wanted) * main_hop - centre) / hop).clip(0, len(rows) - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, len(rows) - 1)
        share = (at - low)[:, None]
        pieces.append((rows[low] * (1 - share) + rows[high] * share).astype(rows.dtype))
    return Packed(np.concatenate(pieces), main.offsets, main.index)
