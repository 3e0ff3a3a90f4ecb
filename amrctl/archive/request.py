"""What an indexing is asked for, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrctl.archive.store import Archive
from amrctl.provenance import number


@dataclass(frozen=True)
class Wanted:
    """A detector's audio stream to be kept: its name, and how its encoder is spelt and set. `key`: of its
    rows, where the archive has some."""

    name: str
    spec: str
    dtype: str
    window: float | None
    hop: float | None
    precision: str | None
    key: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class IndexRequest:
    """What `index` is asked for; None: as in the archive that is there, else the default."""

    folder: Path
    out: Path
    audio_encoder: str | None = None
    text_encoder: str | None = None  # default: the one of the audio encoder's name and weights
    window: float | None = None  # seconds; default 10
    hop: float | None = None  # seconds; default half a window
    dtype: str | None = None  # float16 (the default) or float32
    features: tuple[Wanted, ...] = ()  # beside those that the archive keeps already
    nearest_from: int | None = None  # windows; default 50,000
    device: str = "auto"
    precision: str | None = None  # of networks; default auto
    batch: int | None = None
    workers: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class Indexed:
    """What an indexing did, in recordings.

    `added`, `changed`, `moved` (under another name now), `removed`, `kept`; `heard`: seconds of sound
    that encoders heard; `fresh`: false when the archive was up to date.
    """

    out: Path
    archive: Archive
    added: int
    changed: int
    moved: int
    removed: int
    kept: int
    heard: float
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: times in seconds."""
        archive = self.archive
        counts = ("added", "changed", "moved", "removed", "kept")
        return {
            "out": str(self.out),
            "fresh": self.fresh,
            **{name: getattr(self, name) for name in counts},
            "recordings": len(archive.recordings),
            "windows": archive.windows,
            "seconds": number(archive.seconds),
            "heard": number(self.heard),
            "encoder": archive.encoder.spec,
            "window": number(archive.encoder.window),
            "hop": number(archive.encoder.hop),
            "features": [stream.name for stream in archive.features],
            "nearest": archive.nearest is not None,
            "unreadable": {fault.path: fault.why for fault in archive.unreadable},
        }
