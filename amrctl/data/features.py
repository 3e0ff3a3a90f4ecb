"""The feature file: what frozen encoders said about every recording and every sentence.

HDF5. Groups `/audio/<name>`, `/text/<name>` and `/tef/<name>` each hold one packed stream: `rows`
`(sum of lengths, D)`, `offsets` `(n + 1,)`, `ids` `(n,)` (vids for audio and tef, qids for text),
and for some text encoders `pooled` `(n, P)`, one sentence vector per query. Group attributes say
where the numbers come from. `feature_writer.py` writes
it, `npz.py` imports and exports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from amrctl.encoders.base import spelling
from amrctl.errors import FeatureError, near

FORMAT = "amrctl-features"
VERSION = 1
Side = Literal["audio", "text", "tef"]
SIDES: tuple[Side, ...] = ("audio", "text", "tef")
Rows = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Packed:
    """One stream in memory: `rows` `(sum of lengths, D)` in the file's dtype, `offsets` `(n + 1,)`
    int64, `index` id → position."""

    rows: Rows
    offsets: npt.NDArray[np.int64]
    index: dict[str, int]

    def get(self, id: str) -> Rows:
        """The rows of one id, a view of shape `(length, D)`. Raises `FeatureError` if it was not loaded."""
        at = self.index.get(id)
        if at is None:
            raise FeatureError(f"'{id}' is not among the {len(self.index):,} loaded features")
        return self.rows[self.offsets[at] : self.offsets[at + 1]]


@dataclass(frozen=True)
class StreamInfo:
    """What a stream is. `window` and `hop` are seconds (audio and tef only); `count` recordings or
    queries of `dim` numbers per row; `pooled`: width of the sentence vectors, if it has them;
    `attrs`: all attributes of the group."""

    name: str
    side: Side
    dim: int
    count: int
    dtype: str
    window: float | None
    hop: float | None
    encoder: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    sample_rate: int | None
    normalisation: str | None
    space: str | None
    pooled: int | None
    attrs: dict[str, Any]


class FeatureFile:
    """A feature file opened for reading; a context manager.

    Raises `FeatureError` when the file cannot be read, is something else, or is not complete.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise FeatureError(f"{self.path} is a folder, not a feature file")
        if not self.path.is_file():
            part = self.path.with_name(self.path.name + ".part")
            more = (
                " (its extraction was interrupted; run the same extract-tef again)" if part.is_dir() else ""
            )
            raise FeatureError(f"feature file {self.path} does not exist{more}")
        try:
            self._file = h5py.File(str(self.path), "r")
        except OSError:
            raise FeatureError(f"{self.path} is not a readable HDF5 file") from None
        attrs = plain_attrs(self._file.attrs)
        fault = None
        if attrs.get("format") != FORMAT:
            fault = "is not an amrctl feature file; make one with amrctl extract-tef"
        elif attrs.get("version") != VERSION:
            fault = f"has format version {attrs.get('version')}, this program reads {VERSION}"
        elif attrs.get("complete") is not True:
            fault = "is not complete; make it again with amrctl extract-tef --overwrite"
        if fault:
            self.close()
            raise FeatureError(f"{self.path} {fault}")
        self.attrs = attrs
        self._known: dict[tuple[Side, str], _Stream] = {}

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; loaded arrays stay valid."""
        self._file.close()

    def streams(self, side: Side) -> dict[str, StreamInfo]:
        """Name → description of every stream of one side, in alphabetical order."""
        group = self._file.get(side)
        names = sorted(group) if isinstance(group, h5py.Group) else []
        return {name: self._stream(side, name).info for name in names}

    def resolve(self, side: Side, name: str) -> StreamInfo:
        """The stream of that name; `auto` is the only one there is.

        Raises `FeatureError` that lists the streams and says how to add one.
        """
        known = list(self.streams(side))
        if name == "auto":
            if len(known) == 1:
                return self._stream(side, known[0]).info
            if known:
                raise FeatureError(
                    f"{self.path} holds {len(known)} {side} streams ({', '.join(known)}); "
                    f"name one, as --set features.{side}.0={known[0]}"
                )
        elif name in known:
            return self._stream(side, name).info
        wanted = f"'{name}'{near(name, known)}" if name != "auto" else "at all"
        encoder = name if name != "auto" else ("words" if side == "text" else "logmel")
        raise FeatureError(
            f"{self.path} has no {side} stream {wanted}; add one: {self._extraction([(side, encoder)])}"
        )

    def require(self, wanted: Mapping[Side, Sequence[str]]) -> None:
        """Raise one `FeatureError` for all streams of `wanted` that are not there (`auto` is not looked at);
        it says which command adds them."""
        lacking = [
            (side, name)
            for side, names in wanted.items()
            for name in names
            if name != "auto" and name not in self.streams(side)
        ]
        if len(lacking) > 1 and all(spelling(f"{side}-encoder", name) for side, name in lacking):
            told = ", ".join(f"{side} '{name}'" for side, name in lacking)
            raise FeatureError(f"{self.path} lacks the streams {told}; add them: {self._extraction(lacking)}")
        for side, name in lacking:
            self.resolve(side, name)

    def _extraction(self, lacking: Sequence[tuple[Side, str]]) -> str:
        """The command that adds streams; a name that is no encoder's can only come from npz files."""
        words, audio = [], ""
        for side, name in lacking:
            encoder = spelling(f"{side}-encoder", name)
            words.append(f"--{side}-encoder {encoder}" if encoder else f"--{side}-npz DIR --name {name}")
            audio = "--audio DIR " if encoder and side == "audio" else audio
        return f"amrctl extract-tef --manifest M.jsonl {audio}{' '.join(words)} --out {self.path}"

    def ids(self, side: Side, name: str) -> list[str]:
        """All ids of a stream (vids or qids), in the file's order."""
        return list(self._stream(side, name).index)

    def lengths(self, side: Side, name: str) -> dict[str, int]:
        """id → number of rows (frames or tokens)."""
        stream = self._stream(side, name)
        return dict(zip(stream.index, np.diff(stream.offsets).tolist(), strict=True))

    def load(self, side: Side, name: str, ids: Sequence[str] | None = None) -> Packed:
        """Read a stream, or only the rows of `ids` (repeats are stored once, order is kept).

        Raises `FeatureError` naming the first missing id and how many are missing.
        """
        stream = self._stream(side, name)
        if ids is None:
            return Packed(self._read(stream.rows, 0, len(stream.rows)), stream.offsets, dict(stream.index))
        at = self._positions(stream, ids)
        positions = np.array(list(at.values()), dtype=np.int64)
        begins, ends = stream.offsets[positions], stream.offsets[positions + 1]
        offsets = np.concatenate([[0], np.cumsum(ends - begins)]).astype(np.int64)
        rows = np.empty((int(offsets[-1]), stream.info.dim), dtype=stream.rows.dtype)
        first = 0
        while first < len(at):
            last = first  # neighbours in the file are read in one go
            while last + 1 < len(at) and begins[last + 1] == ends[last]:
                last += 1
            rows[offsets[first] : offsets[last + 1]] = self._read(
                stream.rows, int(begins[first]), int(ends[last])
            )
            first = last + 1
        return Packed(rows, offsets, {id: i for i, id in enumerate(at)})

    def pooled(self, name: str, ids: Sequence[str]) -> Rows | None:
        """Sentence vectors of a text stream for `ids`, shape `(len(ids), P)`; None if it has none."""
        stream = self._stream("text", name)
        if stream.pooled is None:
            return None
        at = self._positions(stream, ids)
        first = min(at.values(), default=0)
        vectors = self._read(stream.pooled, first, max(at.values(), default=-1) + 1)
        return vectors[[at[id] - first for id in ids]]

    def _positions(self, stream: _Stream, ids: Sequence[str]) -> dict[str, int]:
        wanted = list(dict.fromkeys(ids))
        missing = [id for id in wanted if id not in stream.index]
        if missing:
            info = stream.info
            raise FeatureError(
                f"{self.path}: {info.side} stream '{info.name}' has no '{missing[0]}' ({len(missing):,} of "
                f"{len(wanted):,} missing); run extract-tef with the manifest that names "
                f"{'it' if len(missing) == 1 else 'them'}"
            )
        return {id: stream.index[id] for id in wanted}

    def _read(self, data: h5py.Dataset, begin: int, end: int) -> Rows:
        try:
            return np.asarray(data[begin:end])
        except OSError:
            raise FeatureError(f"{self.path}: {data.name} cannot be read; the file is damaged") from None

    def _stream(self, side: Side, name: str) -> _Stream:
        found = self._known.get((side, name))
        if found is None:
            group = self._file.get(f"{side}/{name}") if name and "/" not in name else None
            if not isinstance(group, h5py.Group):
                group = self._file.get(side)
                known = sorted(group) if isinstance(group, h5py.Group) else []
                raise FeatureError(f"{self.path} has no {side} stream '{name}'{near(name, known)}")
            found = self._known[side, name] = _Stream(self.path, side, name, group)
        return found


class _Stream:
    """One group, its layout checked; the rows stay in the file."""

    def __init__(self, path: Path, side: Side, name: str, group: h5py.Group) -> None:
        fault = FeatureError(
            f"{path}: {side} stream '{name}' is damaged; make the file again with extract-tef"
        )
        try:
            self.rows: h5py.Dataset = group["rows"]
            self.offsets = np.asarray(group["offsets"][()], dtype=np.int64)
            ids = group["ids"].asstr()[()].tolist()
            pooled: Any = group.get("pooled")
        except (KeyError, OSError, TypeError, AttributeError, ValueError):
            raise fault from None
        self.pooled: h5py.Dataset | None = pooled
        self.index: dict[str, int] = {id: i for i, id in enumerate(ids)}
        offsets = self.offsets
        if not (
            self.rows.ndim == 2
            and self.rows.dtype.kind == "f"
            and offsets.shape == (len(ids) + 1,)
            and len(self.index) == len(ids)
            and offsets[0] == 0
            and offsets[-1] == len(self.rows)
            and (np.diff(offsets) > 0).all()
            and (self.pooled is None or (self.pooled.ndim == 2 and len(self.pooled) == len(ids)))
        ):
            raise fault
        attrs = plain_attrs(group.attrs)
        self.info = StreamInfo(
            name=name,
            side=side,
            dim=int(self.rows.shape[1]),
            count=len(ids),
            dtype=str(self.rows.dtype),
            window=_number(attrs, "window"),
            hop=_number(attrs, "hop"),
            encoder=str(attrs.get("encoder", "unknown")),
            checkpoint=_text(attrs, "checkpoint"),
            checkpoint_sha256=_text(attrs, "checkpoint_sha256"),
            sample_rate=None if (rate := _number(attrs, "sample_rate")) is None else int(rate),
            normalisation=_text(attrs, "normalisation"),
            space=_text(attrs, "space"),
            pooled=None if self.pooled is None else int(self.pooled.shape[1]),
            attrs=attrs,
        )


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """HDF5 attributes as plain Python values."""
    plain: dict[str, Any] = {}
    for key, value in attrs.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        plain[key] = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    return plain


def _number(attrs: Mapping[str, Any], key: str) -> float | None:
    value = attrs.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _text(attrs: Mapping[str, Any], key: str) -> str | None:
    value = attrs.get(key)
    return str(value) if value not in (None, "") else None
