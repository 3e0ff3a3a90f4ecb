"""Packing feature streams into one HDF5 file that appears whole or not at all.

Rows are written one recording or sentence at a time, so a stream is never in memory as a whole.
Streams that the file held before are taken over.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from amrctl import __version__, provenance
from amrctl.data.features import FORMAT, SIDES, VERSION, FeatureFile, Rows, Side, StreamInfo
from amrctl.errors import FeatureError, OutputError


@dataclass(frozen=True)
class StreamSpec:
    """A stream to pack: its ids in the order of the file, and its attributes (encoder, checkpoint,
    checkpoint_sha256, sample_rate, window, hop, normalisation, space, source_dtype; None is left out)."""

    side: Side
    name: str
    ids: Sequence[str]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def check_name(name: str) -> str:
    """A stream's name, if it can be one (it becomes a group and a folder). Raises `FeatureError`."""
    if not name or name in (".", "..", "auto") or any(c in name for c in "/\\\0") or not name.isprintable():
        raise FeatureError(f"'{name}' cannot name a feature stream; use letters, digits, '-' and '.'")
    return name


def existing_streams(out: Path, overwrite: bool) -> dict[tuple[Side, str], StreamInfo]:
    """The streams of a finished file; nothing where there is none, or what is there will be replaced."""
    if not out.exists():
        return {}
    try:
        with FeatureFile(out) as file:
            return {(side, name): info for side in SIDES for name, info in file.streams(side).items()}
    except FeatureError as error:
        if overwrite:
            return {}
        raise OutputError(f"{error}; choose another --out or add --overwrite") from None


@contextlib.contextmanager
def packing(out: Path, replace: Sequence[tuple[Side, str]], *, overwrite: bool) -> Iterator[h5py.File]:
    """An open HDF5 file that becomes `out` on success and starts with the streams that `out` holds.

    Streams named in `replace` are not taken over; they may exist only with `overwrite`, and endpoint
    features of a replaced audio stream go with it. Raises `OutputError`.
    """
    keep = []
    for (side, name), info in existing_streams(out, overwrite).items():
        if (side, name) in replace:
            refuse_stream(out, side, name, overwrite)
        elif side != "tef" or ("audio", info.attrs.get("of")) not in replace:
            keep.append((side, name))
    try:
        with provenance.writing(out) as temporary, h5py.File(str(temporary), "w") as file:
            file.attrs.update({"format": FORMAT, "version": VERSION, "complete": False})
            file.attrs["tool"] = f"amrctl {__version__}"  # no time: equal work makes equal bytes
            if keep:
                _need(out, out.stat().st_size)
                with h5py.File(str(out), "r") as old:
                    source: Any = old
                    for side, name in keep:
                        source.copy(f"{side}/{name}", file.require_group(side), name)
            yield file
            file.attrs["complete"] = True
    except (OSError, RuntimeError) as error:  # h5py raises both when the disk fails
        raise OutputError(f"cannot write {out}: {' '.join(str(error).split())}") from None


def write_stream(
    file: h5py.File,
    spec: StreamSpec,
    lengths: Sequence[int],
    dim: int,
    dtype: str,
    arrays: Iterable[tuple[Rows, Rows | None]],
    pooled_dim: int = 0,
) -> None:
    """Write one group; `arrays` gives rows `(length, dim)` and sentence vector `(pooled_dim,)` per id,
    one id at a time, so that the stream is never in memory as a whole."""
    group = file.create_group(f"{spec.side}/{spec.name}")
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
    group["offsets"] = offsets
    group.create_dataset("ids", data=list(spec.ids), dtype=h5py.string_dtype())
    _need(Path(file.filename), int(offsets[-1]) * dim * np.dtype(dtype).itemsize)
    data: Any = group.create_dataset("rows", (int(offsets[-1]), dim), dtype)
    vectors: Any = group.create_dataset("pooled", (len(lengths), pooled_dim), dtype) if pooled_dim else None
    for i, (rows, pooled) in enumerate(arrays):
        data[offsets[i] : offsets[i + 1]] = rows
        if vectors is not None:
            vectors[i] = pooled
    group.attrs.update({key: value for key, value in spec.attrs.items() if value is not None})
    group.attrs["dim"] = dim
    group.attrs["tool"] = f"amrctl {__version__}"


def write_tef(file: h5py.File, name: str, function: Callable[[int], Rows], first: str) -> None:
    """Write the temporal endpoint features that the audio streams of the file lack.

    Streams of the same recordings and lengths share one. The first is called `name` and belongs to the
    audio stream `first`; one of other lengths is called `name` and its stream, as `2d-ms-clap-centred`.
    """
    dim = int(function(1).shape[1])
    groups: Any = file
    there = [group for group in groups.get("tef", {}).values() if int(group.attrs["dim"]) == dim]
    for stream in sorted(groups["audio"], key=lambda stream: stream != first):
        audio = groups[f"audio/{stream}"]
        offsets, ids = audio["offsets"][:], audio["ids"].asstr()[:]
        if any(
            np.array_equal(tef["offsets"][:], offsets) and np.array_equal(tef["ids"].asstr()[:], ids)
            for tef in there
        ):
            continue
        called = name if f"tef/{name}" not in file else f"{name}-{stream}"
        attrs = {"encoder": f"tef-{name}", "of": stream}
        attrs |= {key: audio.attrs.get(key) for key in ("window", "hop")}
        lengths = np.diff(offsets).tolist()
        rows = ((function(n), None) for n in lengths)
        spec = StreamSpec("tef", check_name(called), ids.tolist(), attrs)
        write_stream(file, spec, lengths, dim, "float32", rows)
        there.append(groups[f"tef/{called}"])


def _need(path: Path, size: int) -> None:
    """Refuse to begin what cannot fit: HDF5 does not survive a disk that fills while it writes."""
    free = shutil.disk_usage(path.parent).free
    if free < size + (1 << 20):
        raise OutputError(
            f"cannot write in {path.parent}: {size / 2**30:.2f} GiB are needed, {free / 2**30:.2f} are free"
        )


def refuse_stream(out: Path, side: Side, name: str, overwrite: bool) -> None:
    """Raise `OutputError` for a stream that exists and must not be replaced."""
    if not overwrite:
        raise OutputError(
            f"{out} has {side} stream '{name}' already; choose another --out or replace it with --overwrite"
        )


def checked(side: Side, name: str, id: str, array: Rows, ndim: int, dtype: str) -> Rows:
    """`array` in the dtype of the file. Raises `FeatureError` naming the id: wrong shape, not finite,
    too large for float16."""
    where = f"{side} stream '{name}', '{id}'"
    array = np.asarray(array)
    if "\0" in id:
        raise FeatureError(f"{where}: an id may not hold a NUL character")
    if array.ndim != ndim or array.dtype.kind != "f" or array.size == 0:
        raise FeatureError(
            f"{where}: {ndim}-dimensional rows are expected, these are {array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise FeatureError(f"{where}: the features hold a value that is not finite")
    largest = float(np.abs(array).max())
    if largest > float(np.finfo(dtype).max):
        raise FeatureError(f"{where}: a value of {largest:g} does not fit {dtype}; add --dtype float32")
    return array.astype(dtype)
