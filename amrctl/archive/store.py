"""The archive on disk: a folder whose `index.json` names everything else that counts.

`index.json` is replaced in one step, and what it names is written before and never changed: a reader,
or a kill, finds the old archive or the new one. Files in the folder:

    index.json               what was indexed, with what; see `Archive`
    vectors-<id>.npy         one row per window, recordings in the order of the list, length 1
    nearest-<id>.faiss       graph over these rows, where there are many; see `nearest`
    features/<stream>/<sha256>.npy   frames of a detector's audio stream, by the content of the recording
    cache/                   the same of recordings that were heard by a search; see `shards.Cache`
    part/                    what an interrupted indexing has done; see `build`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from amrctl import provenance
from amrctl.errors import ArchiveError

FORMAT: Literal["amrctl-archive"] = "amrctl-archive"
VERSION = 1
INDEX = "index.json"
Vectors = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.int64]


def _inside(path: str) -> str:
    """A relative path with `/` between its parts that cannot leave its folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or ":" in parts[0][1:2]:
        raise ValueError("a relative path inside the folder is expected")
    return path


def _plain(name: str) -> str:
    if PurePosixPath(name).name != name or name.startswith(".") or "\\" in name:
        raise ValueError("the name of a file beside index.json is expected")
    return name


Inside = Annotated[str, AfterValidator(_inside)]
FileName = Annotated[str, AfterValidator(_plain)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
StreamKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recording(_Entry):
    """One recording: `path` relative to the folder, `seconds` long, `windows` rows in the vectors."""

    path: Inside
    bytes: int = Field(ge=0)
    mtime_ns: int
    sha256: Sha256
    seconds: float = Field(gt=0)
    windows: int = Field(ge=1)


class Unreadable(_Entry):
    """A sound file that could not be heard, and why."""

    path: str
    why: str


class Ear(_Entry):
    """The audio encoder of the vectors. `spec`: its spelling; `text`: that of the text encoder whose
    pooled rows lie in the same `space`; `window`, `hop`: seconds; `made_from`: all that decides its
    numbers."""

    spec: str
    text: str
    space: str
    dim: int = Field(ge=1)
    window: float = Field(gt=0)
    hop: float = Field(gt=0)
    made_from: dict[str, Any]


class FeatureStream(_Entry):
    """A detector's audio stream that is kept for every recording; `key` names its folder."""

    key: StreamKey
    name: str
    spec: str
    dim: int = Field(ge=1)
    dtype: Literal["float16", "float32"]
    window: float | None
    hop: float | None
    precision: str | None


class Graph(_Entry):
    """The file of the nearest-neighbour graph, and what it was built with."""

    file: FileName
    links: int
    breadth: int


class Archive(_Entry):
    """What `index.json` says.

    `folder`: the indexed folder, relative to the archive's where that is possible; `nearest_from`:
    windows from which on a graph is built.
    """

    format: Literal["amrctl-archive"]
    version: int
    folder: str
    encoder: Ear
    dtype: Literal["float16", "float32"]
    vectors: FileName
    nearest_from: int
    nearest: Graph | None
    features: tuple[FeatureStream, ...]
    recordings: tuple[Recording, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def windows(self) -> int:
        """Rows in the vectors."""
        return sum(recording.windows for recording in self.recordings)

    @property
    def seconds(self) -> float:
        """Length of all recordings."""
        return sum(recording.seconds for recording in self.recordings)

    def offsets(self) -> Offsets:
        """Where each recording's rows begin, `(recordings + 1,)`."""
        counts = [recording.windows for recording in self.recordings]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def read(path: Path | str) -> Archive:
    """What the archive `path` holds. Raises `ArchiveError`."""
    root = Path(path)
    index = root / INDEX
    if not index.is_file():
        if not root.exists():
            raise ArchiveError(f"archive {root} does not exist; amrctl index FOLDER --out {root} makes it")
        if (root / "part").is_dir():
            raise ArchiveError(f"{root}: its indexing was interrupted; run the same amrctl index again")
        raise ArchiveError(f"{root} is no archive: it holds no {INDEX}")
    try:
        given = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArchiveError(f"{index} cannot be read; make the archive again with --overwrite") from None
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise ArchiveError(f"{index} is not the index of an amrctl archive")
    if given.get("version") != VERSION:
        raise ArchiveError(
            f"{root} has archive format {given.get('version')}, this program reads {VERSION}; "
            "make it again with --overwrite"
        )
    try:
        return Archive.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ArchiveError(
            f"{index}: {where}: {fault['msg'].lower()}; make the archive again with --overwrite"
        ) from None


def write(path: Path, archive: Archive) -> None:
    """Make `archive` what the folder holds, in one step."""
    provenance.write_json(path / INDEX, archive.model_dump(mode="json"))


def open_vectors(path: Path, archive: Archive) -> Vectors:
    """The rows `(windows, dim)`, mapped into memory: what is not looked at is not read.

    Raises `ArchiveError` when the file is missing or is not the one that the index describes.
    """
    file = path / archive.vectors
    again = "run amrctl index with --overwrite to make it again"
    try:
        rows: Vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise ArchiveError(f"{file} is missing or damaged; {again}") from None
    wanted = (archive.windows, archive.encoder.dim)
    if rows.shape != wanted or rows.dtype != archive.dtype:
        raise ArchiveError(f"{file} holds {rows.dtype} {rows.shape}, not {archive.dtype} {wanted}; {again}")
    return rows


def identity(value: Any) -> str:
    """Name for what follows from `value`, plain JSON: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# What decides the numbers of a detector's stream. A checkpoint says it of its training, an encoder of itself.
DECIDING = (
    "encoder", "encoder_version", "checkpoint_sha256", "sample_rate", "window", "hop", "normalisation",
    "precision",
)  # fmt: skip


def stream_key(attrs: Mapping[str, Any], dtype: str) -> str:
    """The key of a stream with these attributes, stored as `dtype`; equal keys mean equal numbers."""
    told: list[Any] = []
    for name in DECIDING:
        value = attrs.get(name)
        told.append(float(value) if isinstance(value, (int, float)) else value or None)
    return identity([*told, dtype])


def relative(folder: Path, root: Path) -> str:
    """How `folder` is written in the index of the archive `root`: both may move together."""
    try:
        return Path(os.path.relpath(folder.resolve(), root.resolve())).as_posix()
    except ValueError:  # another drive
        return folder.resolve().as_posix()


def located(archive: Archive, root: Path, folder: Path | None = None) -> Path:
    """The folder of the recordings: `folder` where it is given, else as the index says."""
    return folder if folder is not None else Path(os.path.normpath(root.resolve() / archive.folder))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """`key before, not now` for every key whose values differ."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key} {_brief(before.get(key))}, not {_brief(now.get(key))}" for key in keys]


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
