"""Official feature folders, in and out without loss.

Layout of the DCASE 2026 Task 6 baseline: one `<vid>.npz` per recording with key `features`
`(T, D)`, one `qid<qid>.npz` per query with key `last_hidden_state` `(L, D)`. Archives unpack into
different folders, so files are found wherever they lie below the given one. A sentence vector, which
the official files do not have, goes under `pooler_output` `(P,)`.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.data.feature_packing import StreamSpec, check_name, packing, write_stream, write_tef
from amrctl.data.feature_writer import Tef
from amrctl.data.features import FeatureFile, Rows, Side, StreamInfo
from amrctl.data.manifest import Manifest
from amrctl.errors import FeatureError, OutputError
from amrctl.progress import SILENT, Reporter

KEYS: dict[Side, str] = {"audio": "features", "text": "last_hidden_state"}
POOLED = "pooler_output"
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def import_npz(
    out: Path | str,
    audio_npz: Path | str | None,
    text_npz: Path | str | None,
    name: str,
    manifest: Manifest,
    *,
    window: float = 1.0,
    hop: float = 1.0,
    attrs: Mapping[str, Any] | None = None,
    tef: Tef | None = None,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> list[StreamSpec]:
    """Pack the npz files of a manifest's recordings and queries into `out` as streams called `name`.

    The source's dtype (float16, float32, float64) is kept. `window` and `hop` are seconds per frame;
    `attrs` are further attributes (checkpoint, sample_rate, ...). Other streams of `out` stay. Files
    are read one at a time, twice: shapes, then values. Returns what was written. Raises
    `FeatureError` naming the file: missing, twice, broken, wrong key or shape, not finite.
    """
    check_name(name)
    wanted: list[tuple[Side, Path, list[str]]] = []
    if audio_npz is not None:
        wanted.append(("audio", Path(audio_npz), list(manifest.recordings)))
    if text_npz is not None:
        wanted.append(("text", Path(text_npz), list(manifest.by_qid)))
    if not wanted:
        raise FeatureError("nothing to import: give --audio-npz, --text-npz or both")
    with packing(Path(out), [(side, name) for side, _, _ in wanted], overwrite=overwrite) as file:
        written = []
        for side, folder, ids in wanted:
            source = _Folder(side, folder, ids)
            more = {"window": window, "hop": hop} if side == "audio" else {}
            dtype = str(source.dtype)
            spec = StreamSpec(
                side,
                name,
                ids,
                {"encoder": name, **more, "source_dtype": dtype, **(attrs or {}), "source": "npz"},
            )
            with report.bar(f"import {side}", len(ids), unit="files") as bar:
                write_stream(
                    file,
                    spec,
                    source.lengths,
                    source.dim,
                    dtype,
                    _counted(source, bar.advance),
                    source.pooled,
                )
            if side == "audio":
                _tell_lengths(manifest, ids, source.lengths, hop, report)
                for kind, function in (tef or {}).items():
                    write_tef(file, kind, function, spec.name)
            written.append(spec)
    return written


def export_npz(
    features: Path | str,
    out_dir: Path | str,
    audio: str | None = "auto",
    text: str | None = "auto",
    *,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> tuple[Path | None, Path | None]:
    """Write streams of a feature file as official folders `OUT/<audio>` and `OUT/<text>_text`.

    `auto` is the only stream of its side, None leaves the side out. Values and dtype are those of
    the feature file. Returns both folders (None for a side left out). The folder `out_dir` appears
    whole or not at all. Raises `FeatureError` for an unknown stream or an id that cannot name a
    file, `OutputError` when `out_dir` exists and `overwrite` is false.
    """
    target = provenance.refuse_existing(out_dir, overwrite)
    with FeatureFile(features) as file:
        chosen: list[tuple[StreamInfo, str]] = []
        if audio is not None:
            info = file.resolve("audio", audio)
            chosen.append((info, info.name))
        if text is not None:
            info = file.resolve("text", text)
            chosen.append((info, f"{info.name}_text"))
        places: dict[Side, Path] = {}
        try:
            with provenance.writing_folder(target, overwrite=overwrite) as temporary:
                for info, folder in chosen:
                    places[info.side] = target / folder
                    _export(file, info, temporary / folder, report)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from None
    return places.get("audio"), places.get("text")


def _export(file: FeatureFile, info: StreamInfo, folder: Path, report: Reporter) -> None:
    folder.mkdir()
    ids = file.ids(info.side, info.name)
    with report.bar(f"export {info.side}", len(ids), unit="files") as bar:
        for id in ids:
            arrays = {KEYS[info.side]: file.load(info.side, info.name, [id]).rows}
            vector = file.pooled(info.name, [id]) if info.pooled else None
            if vector is not None:
                arrays[POOLED] = vector[0]
            # an open file: savez would add ".npz" to a path that happens to end differently
            with open(folder / _file_name(info.side, id), "xb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            bar.advance()


def _file_name(side: Side, id: str) -> str:
    """The official file name of an id. Raises `FeatureError` for one that would leave its folder."""
    if any(c in id for c in "/\\\0") or id in ("", ".", ".."):
        raise FeatureError(
            f"{'recording' if side == 'audio' else 'qid'} '{id}' cannot name a file; rename it"
        )
    return f"{id}.npz" if side == "audio" else f"qid{id}.npz"


class _Folder:
    """The files of one side: shapes are read at once, values while iterating, one file at a time."""

    def __init__(self, side: Side, folder: Path, ids: Sequence[str]) -> None:
        self.key = KEYS[side]
        self.paths = _find(side, folder, ids)
        self.lengths: list[int] = []
        kinds: dict[tuple[int, int, np.dtype[Any]], Path] = {}
        for path in self.paths:
            shapes = _shapes(path, self.key)
            (length, dim), dtype = shapes[self.key]
            pooled = shapes[POOLED][0][0] if POOLED in shapes else 0
            self.lengths.append(length)
            kinds.setdefault((dim, pooled, dtype), path)
        if len(kinds) > 1:
            (a, first), (b, second) = list(kinds.items())[:2]
            raise FeatureError(
                f"{second}: width {b[0]}, {b[2]}, sentence vector {b[1]}, but {first} has width {a[0]}, "
                f"{a[2]}, {a[1]}; one stream needs one kind"
            )
        self.dim, self.pooled, self.dtype = next(iter(kinds))

    def __iter__(self) -> Iterator[tuple[Rows, Rows | None]]:
        for path in self.paths:
            try:
                with np.load(path, allow_pickle=False) as file:
                    rows = file[self.key]
                    vector = file[POOLED] if self.pooled else None
            except _BROKEN as error:
                raise FeatureError(f"{path}: not readable ({' '.join(str(error).split())[:80]})") from None
            for array in (rows, vector):
                if array is not None and not np.isfinite(array).all():
                    raise FeatureError(f"{path}: holds a value that is not finite")
            yield rows, vector


def _find(side: Side, folder: Path, ids: Sequence[str]) -> list[Path]:
    """The file of every id, anywhere below `folder`."""
    if not folder.is_dir():
        raise FeatureError(f"{folder} is not a folder of npz files")
    names = {_file_name(side, id): id for id in ids}
    found: dict[str, Path] = {}
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            if name in names:
                path = Path(root) / name
                if name in found:
                    raise FeatureError(f"{found[name]} and {path} are both for '{names[name]}'; keep one")
                found[name] = path
    missing = [name for name in names if name not in found]
    if missing:
        raise FeatureError(f"{folder} has no {missing[0]} ({len(missing):,} of {len(names):,} files missing)")
    return [found[_file_name(side, id)] for id in ids]


def _shapes(path: Path, key: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of the known arrays of a file, from their headers alone."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            for name in {key, POOLED} & names:
                with archive.open(f"{name}.npy") as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                    found[name] = tuple(shape), dtype.newbyteorder("=")
    except _BROKEN as error:
        raise FeatureError(f"{path}: not readable as npz ({' '.join(str(error).split())[:80]})") from None
    if key not in found:
        raise FeatureError(f"{path}: has no array '{key}'; it holds {', '.join(sorted(names)) or 'nothing'}")
    for name, (shape, dtype) in found.items():
        dims = 2 if name == key else 1
        if len(shape) != dims or 0 in shape or dtype.kind != "f" or dtype.itemsize > 8:
            raise FeatureError(
                f"{path}: '{name}' is {dtype} of shape {shape}; floating point of "
                f"{'shape (length, width)' if dims == 2 else 'one dimension'} is expected"
            )
    return found


def _counted(arrays: _Folder, advance: Any) -> Iterator[tuple[Rows, Rows | None]]:
    for pair in arrays:
        yield pair
        advance()


def _tell_lengths(
    manifest: Manifest, vids: Sequence[str], lengths: Sequence[int], hop: float, report: Reporter
) -> None:
    pairs = list(zip(vids, lengths, strict=True))
    odd = [(vid, n) for vid, n in pairs if abs(n * hop - manifest.recordings[vid]) > 2]
    if odd:
        vid, n = odd[0]
        report.note(
            f"{len(odd):,} of {len(pairs):,} recordings have features more than 2 s longer or shorter than "
            f"the manifest says; first: {vid}, {n * hop:g} s, in the manifest {manifest.recordings[vid]:g} s"
        )
