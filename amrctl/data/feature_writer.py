"""Writing the feature file: shards first, then one packed HDF5 that appears whole or not at all.

Extraction puts every finished recording and sentence into `F.h5.part/`, from as many processes as
it likes; a run that was killed goes on from there. `finish` packs the shards into a temporary
file, takes over the streams that `F.h5` held before, and renames. Memory stays at one shard.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from amrctl import provenance
from amrctl.data.feature_packing import (
    StreamSpec,
    check_name,
    checked,
    existing_streams,
    packing,
    refuse_stream,
    write_stream,
    write_tef,
)
from amrctl.data.features import SIDES, Rows, Side
from amrctl.errors import FeatureError, OutputError

__all__ = ["DTYPES", "FeatureWriter", "StreamSpec", "Tef"]

DTYPES = ("float16", "float32")
Tef = Mapping[str, Callable[[int], Rows]]


class FeatureWriter:
    """Collects one extraction's results and packs them into `out`.

    `settings`: everything that decides the numbers (encoders, manifests' hashes, ...), as plain
    JSON values; `settings["dtype"]` is how rows are stored, float16 unless it says float32.
    `streams`: what will be written, so that a clash with an existing file is told before the work.

    `finished` is true when `out` was already made with the same settings. May be pickled: worker
    processes call `put` on their copy. Raises `FeatureError` when an interrupted extraction with
    other settings is in the way, `OutputError` when a stream exists, in both cases unless
    `overwrite`, and when another process is at work on the same file.
    """

    def __init__(
        self,
        out: Path | str,
        settings: Mapping[str, Any],
        overwrite: bool,
        streams: Iterable[tuple[Side, str]] = (),
    ) -> None:
        self.out = Path(out)
        if not self.out.name:
            raise FeatureError(f"--out '{out}' names no file; write one, as F.h5")
        self.part = self.out.with_name(self.out.name + ".part")
        self.overwrite = overwrite
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), sort_keys=True))
        self.dtype = str(self.settings.get("dtype", DTYPES[0]))
        if self.dtype not in DTYPES:
            raise FeatureError(f"--dtype {self.dtype}: write {' or '.join(DTYPES)}")
        for _, name in streams:
            check_name(name)
        self._lock: int | None = None
        existing = existing_streams(self.out, overwrite)
        mine = self._fingerprint()
        self.finished = not overwrite and any(i.attrs.get("settings") == mine for i in existing.values())
        if self.finished:
            shutil.rmtree(self.part, ignore_errors=True)  # left by a kill after the last rename
            return
        for side, name in streams:
            if (side, name) in existing:
                refuse_stream(self.out, side, name, overwrite)
        self._open_part()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def _fingerprint(self) -> str:
        """SHA-256 of the settings: an HDF5 attribute may not be long, settings may."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def _open_part(self) -> None:
        try:
            self.part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.part}: {error.strerror}") from None
        busy = f"another extraction is writing {self.out}; wait for it or stop it"
        self._lock = provenance.claim(self.part / "lock", busy)
        for left in self.out.parent.glob(f".{glob.escape(self.out.name)}.*.tmp"):
            left.unlink(missing_ok=True)  # a kill while packing
        known = self.part / "settings.json"
        if known.exists():
            differing = _differing(known, self.settings)
            if not differing:
                return
            if not self.overwrite:
                raise FeatureError(
                    f"{self.part} holds an interrupted extraction with other settings: {differing}; repeat "
                    "those, or start anew with --overwrite"
                )
            known.unlink()  # first, so that a kill here leaves no shards that seem to belong to us
        for side in SIDES:
            shutil.rmtree(self.part / side, ignore_errors=True)
        provenance.write_json(known, self.settings)

    def done(self, side: Side, name: str) -> set[str]:
        """Ids whose rows are stored already."""
        folder = self.part / side / check_name(name)
        if not folder.is_dir():
            return set()
        return {_shard_id(path) for path in folder.glob("*.npy")}

    def put(self, side: Side, name: str, id: str, rows: Rows, pooled: Rows | None = None) -> None:
        """Store the rows `(length, D)` of one id, and its sentence vector `(P,)` if it has one.

        Atomic, from any process. Raises `FeatureError` naming the id: no rows, not finite, or too
        large for float16.
        """
        vector = np.zeros(0, self.dtype) if pooled is None else checked(side, name, id, pooled, 1, self.dtype)
        arrays = (checked(side, name, id, rows, 2, self.dtype), vector, np.frombuffer(id.encode(), np.uint8))
        folder = self.part / side / check_name(name)
        target = folder / _shard_name(id)
        temporary = folder / f".{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as out:
                for array in arrays:
                    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
            temporary.replace(target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self, streams: Sequence[StreamSpec], tef: Tef | None = None) -> None:
        """Pack the shards of `streams` into `out`, keep its other streams, remove the part folder.

        `tef`: name → function from a number of frames to temporal endpoint features `(n, 2 or 3)`,
        stored for the audio streams, see `write_tef`; the first of `streams` comes first.
        Raises `FeatureError` when an id has no shard, or shards differ in width.
        """
        specs = [replace(spec, attrs={**spec.attrs, "settings": self._fingerprint()}) for spec in streams]
        parts = [_Shards(self.part / spec.side / check_name(spec.name), spec) for spec in specs]
        audio = next((shards for shards in parts if shards.spec.side == "audio"), None)
        with packing(self.out, [(s.side, s.name) for s in specs], overwrite=self.overwrite) as file:
            for shards in parts:
                write_stream(
                    file, shards.spec, shards.lengths, shards.dim, self.dtype, shards, shards.pooled_dim
                )
            for name, function in (tef or {}).items():
                if audio is not None:
                    write_tef(file, name, function, audio.spec.name)
        self.close()
        shutil.rmtree(self.part, ignore_errors=True)

    def close(self) -> None:
        """Let go of the part folder; what is stored stays for the next run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()


class _Shards:
    """The stored arrays of one stream: lengths and widths first, then the arrays one by one."""

    def __init__(self, folder: Path, spec: StreamSpec) -> None:
        self.spec = spec
        self._paths = [folder / _shard_name(id) for id in spec.ids]
        missing = [id for id, path in zip(spec.ids, self._paths, strict=True) if not path.is_file()]
        if missing or not self._paths:
            what = f"'{missing[0]}' and {len(missing) - 1:,} more are" if missing else "everything is"
            raise FeatureError(f"{spec.side} stream '{spec.name}': {what} not extracted yet")
        self.lengths: list[int] = []
        widths: dict[tuple[int, int], str] = {}
        for id, path in zip(spec.ids, self._paths, strict=True):
            with _damage(path), open(path, "rb") as stream:
                shape = _skip(stream)
                pooled = np.load(stream, allow_pickle=False)
                _skip(stream)
            self.lengths.append(shape[0])
            widths.setdefault((shape[1], len(pooled)), id)
        if len(widths) > 1:
            (a, first), (b, second) = list(widths.items())[:2]
            raise FeatureError(
                f"{spec.side} stream '{spec.name}': '{first}' has width {a[0]} (sentence {a[1]}) "
                f"and '{second}' {b[0]} ({b[1]})"
            )
        self.dim, self.pooled_dim = next(iter(widths))

    def __iter__(self) -> Iterator[tuple[Rows, Rows | None]]:
        for path in self._paths:
            with _damage(path), open(path, "rb") as stream:
                rows, pooled = (np.load(stream, allow_pickle=False) for _ in range(2))
            yield rows, pooled


def _skip(stream: BinaryIO) -> tuple[int, ...]:
    """Shape of the array at the stream's place; moves behind it without reading its values."""
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    stream.seek(int(np.prod(shape)) * dtype.itemsize, os.SEEK_CUR)
    return tuple(shape)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError):
        path.unlink(missing_ok=True)
        raise FeatureError(f"{path} is damaged and was removed; run the same command again") from None


def _shard_name(id: str) -> str:
    """A file name for any id, also where upper and lower case are one; long ids become a hash."""
    name = base64.b32encode(id.encode()).decode().rstrip("=")
    return f"{name if len(name) <= 200 else '0' + hashlib.sha256(id.encode()).hexdigest()}.npy"


def _shard_id(path: Path) -> str:
    if not path.name.startswith("0"):  # "0" is no letter of base 32
        return base64.b32decode(path.stem + "=" * (-len(path.stem) % 8)).decode()
    with _damage(path), open(path, "rb") as stream:
        for _ in range(2):
            _skip(stream)
        return bytes(np.load(stream, allow_pickle=False)).decode()


def _differing(known: Path, settings: Mapping[str, Any]) -> str:
    """Which settings differ from those of an interrupted extraction; empty if none."""
    try:
        before = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "they cannot be read"
    if not isinstance(before, dict):
        return "they cannot be read"
    keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    return ", ".join(
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(settings.get(key))}" for key in keys
    )
