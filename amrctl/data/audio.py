"""Sound files in: finding them by recording id, and reading them as mono in bounded memory.

Everything that hears a sound goes through `stream_rates`, so that extraction, synthesis and search
hear exactly the same samples. A sound is a file, or a `Member`: a stretch of a tar that holds one.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from amrctl.errors import AudioError

Samples = npt.NDArray[np.float32]

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
# Files are read and resampled in pieces of this many frames whatever the caller's block is, so
# that the samples do not depend on the block to the last bit.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """A sound file inside a tar: `size` bytes from byte `offset`. `name` is for messages only."""

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}:{self.name if self.name.isprintable() else ascii(self.name)}"


Sound = Path | Member


def byte_size(sound: Sound) -> int:
    """Bytes of a sound file, wherever it lies."""
    return sound.size if isinstance(sound, Member) else sound.stat().st_size


class _Slice(io.RawIOBase):
    """The bytes of a `Member` as a file of their own."""

    def __init__(self, stream: BinaryIO, member: Member) -> None:
        self._stream, self._first, self._size = stream, member.offset, member.size
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._stream.seek(self._first + self._at)
        got = self._stream.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)


def _listing(folder: Path) -> dict[str, list[Path]]:
    """Every sound file under `folder` by stem, in sorted order."""
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a folder; --audio names the folder with the recordings")
    found: dict[str, list[Path]] = {}
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(where, name)
            if path.suffix.lower() in SUFFIXES:
                found.setdefault(path.stem, []).append(path)
    return found


def find_audio(
    folder: Path | str, vids: Iterable[str], *, bad: dict[str, str] | None = None
) -> dict[str, Path]:
    """Find the sound file of every recording: its stem equals the id, anywhere under `folder`.

    Suffixes: .wav, .flac, .ogg, .mp3 in any case. Ids are only compared with names that are
    there, never joined to a path, so an id such as `../x` finds nothing.

    Raises `AudioError` when a recording has no file, has two, or its file is a link that leaves
    `folder`. With `bad` given these recordings are left out instead, and `bad[vid]` says why.
    """
    root = Path(folder)
    found = _listing(root)
    inside = root.resolve()
    paths: dict[str, Path] = {}
    faults: dict[str, str] = {}
    for vid in dict.fromkeys(vids):
        hits = found.get(vid, [])
        if len(hits) > 1:
            faults[vid] = f"recording {vid} has {len(hits)} files: {hits[0]} and {hits[1]}; keep one"
        elif hits and not hits[0].resolve().is_relative_to(inside):
            faults[vid] = f"{hits[0]} is a link out of {root}; copy the file into the folder"
        elif not hits:
            faults[vid] = f"no audio for recording {vid} under {root} ({vid}.wav, .flac, .ogg or .mp3)"
        else:
            paths[vid] = hits[0]
    if bad is not None:
        bad.update(faults)
    elif faults:
        first = next(iter(faults.values()))
        more = f" (and {len(faults) - 1} more recordings with such a fault)" if len(faults) > 1 else ""
        raise AudioError(first + more)
    return paths


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", None) or error).strip().rstrip(".")
    # What the library says of an mp3 without one good packet; that the file exists was seen before.
    return "no sound format that is known" if text.startswith("File does not exist") else text


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read from front to back.

    After each read the library seeks to where it is already. In an mp3 that loses what the decoder
    holds of the last packets and leaves a gap in the sound; in other formats it costs time.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _opened(sound: Sound, *, seeking: bool = False) -> Iterator[soundfile.SoundFile]:
    """Open a sound file; every fault of the library, now or while reading, becomes `AudioError`."""
    path = sound.tar if isinstance(sound, Member) else sound
    if not path.is_file():
        raise AudioError(f"{path}: no such sound file")
    try:
        with contextlib.ExitStack() as stack:
            held: Path | _Slice = path
            if isinstance(sound, Member):
                held = _Slice(stack.enter_context(open(path, "rb")), sound)
            yield stack.enter_context(soundfile.SoundFile(held) if seeking else _Sequential(held))
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{sound}: not a readable sound file ({_reason(error)}); replace it") from None


def _not_finite(sound: Sound, at: int, rate: int) -> AudioError:
    return AudioError(f"{sound}: sample {at} ({at / rate:.3f} s) is not a finite number; replace the file")


def probe(sound: Sound | str) -> tuple[int, int, int]:
    """Sample rate in Hz, channels, and length in sample frames, from the header.

    Raises `AudioError` when the file is missing or no sound file.
    """
    with _opened(Path(sound) if isinstance(sound, str) else sound) as opened:
        return int(opened.samplerate), int(opened.channels), int(opened.frames)


def stream_rates(sound: Sound, rates: Sequence[int]) -> Iterator[tuple[Samples, ...]]:
    """Read a sound once, as mono float32 at each of `rates` Hz, in pieces of no meaning.

    Each step gives one piece per rate, some of them empty. Channels are averaged, then soxr ("HQ")
    resamples. A rate gets the same samples whichever others are asked for, at least one.

    Raises `AudioError` naming the file: missing, unreadable, empty, cut off, or with a sample that
    is not finite (with its time). Faults in the middle show when their piece is reached.
    """
    if any(rate < 1 for rate in rates):
        raise ValueError(f"sample rates {list(rates)} are not all positive")
    with _opened(sound) as opened:
        source, promised = int(opened.samplerate), int(opened.frames)
        resamplers = [
            None if rate == source else soxr.ResampleStream(source, rate, 1, dtype="float32", quality="HQ")
            for rate in rates
        ]
        read, last = 0, False
        given = [0] * len(rates)
        while not last:
            block = opened.read(_PIECE, dtype="float32", always_2d=True)
            if not np.isfinite(block).all():
                at = read + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise _not_finite(sound, at, source)
            read += len(block)
            last = len(block) < _PIECE
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            pieces = []
            for i, resampler in enumerate(resamplers):
                piece = mono if resampler is None else resampler.resample_chunk(mono, last=last)
                given[i] += len(piece)
                if last and read and given[i] == 0:  # one or two samples at a higher rate
                    piece = np.zeros(1, np.float32)
                pieces.append(np.ascontiguousarray(piece))
            yield tuple(pieces)
        if read == 0:
            raise AudioError(f"{sound}: holds no samples; replace it")
        if read < promised - source:
            raise AudioError(
                f"{sound}: ends after {read / source:.1f} s, its header promises {promised / source:.1f} s; "
                "the file is cut off"
            )


def stream_mono(sound: Sound | str, rate: int, block_seconds: float = 30.0) -> Iterator[Samples]:
    """Read a sound as mono float32 at `rate` Hz, `block_seconds` at a time; see `stream_rates`.

    All blocks have `rate * block_seconds` samples (rounded, at least 1) but the last, which has at
    least 1. The samples do not depend on `block_seconds`, and memory depends on nothing else.
    """
    size = max(1, round(rate * block_seconds))
    held: list[Samples] = []
    have = 0
    for (piece,) in stream_rates(Path(sound) if isinstance(sound, str) else sound, (rate,)):
        held.append(piece)
        have += len(piece)
        if have >= size:
            joined = np.concatenate(held)
            whole = have - have % size
            for start in range(0, whole, size):
                yield joined[start : start + size]
            held, have = [joined[whole:].copy()], have - whole
    if have:
        yield np.concatenate(held)


def load_mono(sound: Sound | str, rate: int) -> Samples:
    """Read a whole sound as mono float32 at `rate` Hz, shape `(samples,)`; see `stream_mono`."""
    return np.concatenate(list(stream_mono(sound, rate)))


def load_span(sound: Sound | str, rate: int, start: float, end: float) -> Samples:
    """The stretch from `start` to `end` (seconds) as mono float32 at `rate` Hz.

    The samples are those of `load_mono` there, but for rounding at the edges of what was resampled.
    Only the stretch is read and decoded; in an mp3, where seeking is not exact, what comes before it is
    passed over. A stretch past the end is cut. Raises `AudioError` as `stream_rates` does, also
    when nothing of the stretch is there.
    """
    if not 0 <= start < end:
        raise ValueError(f"{start:g} to {end:g} s is no stretch")
    found = Path(sound) if isinstance(sound, str) else sound
    first, last = round(start * rate), round(end * rate)
    with _opened(found, seeking=True) as opened:
        block = None if opened.format == "MPEG" else _block(found, opened, start, end)
        source = int(opened.samplerate)
    if block is None:
        piece = _passed_over(found, rate, first, last)
    else:
        mono, skipped = block
        if source != rate:
            mono = soxr.resample(mono, source, rate, quality="HQ")
        piece = mono[first - skipped * rate : last - skipped * rate]
    if not len(piece):
        raise AudioError(f"{found}: holds nothing from {start:g} to {end:g} s")
    return np.ascontiguousarray(piece, dtype=np.float32)


def _block(
    sound: Sound, opened: soundfile.SoundFile, start: float, end: float
) -> tuple[npt.NDArray[np.float32], int]:
    """The samples around a stretch, and the whole seconds before them: there both rates have a sample.

    A second more on either side holds the resampling filter.
    """
    source, skipped = int(opened.samplerate), max(0, math.floor(start) - 1)
    if skipped * source >= opened.frames:
        raise AudioError(f"{sound}: holds nothing from {start:g} to {end:g} s")
    opened.seek(skipped * source)
    block = opened.read((math.ceil(end) + 1 - skipped) * source, dtype="float32", always_2d=True)
    if not np.isfinite(block).all():
        at = skipped * source + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        raise _not_finite(sound, at, source)
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32), skipped


def _passed_over(sound: Sound, rate: int, first: int, last: int) -> npt.NDArray[np.float32]:
    """Samples `first` to `last` by reading from the front; memory holds the stretch only."""
    kept: list[Samples] = []
    at = 0
    for (piece,) in stream_rates(sound, (rate,)):
        kept.append(piece[max(0, first - at) : max(0, last - at)])
        at += len(piece)
        if at >= last:
            break
    return np.concatenate(kept)
