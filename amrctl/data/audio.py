"""Sound files in: finding them by recording id, and reading them as mono in bounded memory.

Everything that opens a sound file goes through `stream_mono`, so that extraction, synthesis and
search hear exactly the same samples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

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
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a sound file; every fault of the library, now or while reading, becomes `AudioError`."""
    if not path.is_file():
        raise AudioError(f"{path}: no such sound file")
    try:
        with _Sequential(path) as sound:
            yield sound
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not a readable sound file ({_reason(error)}); replace it") from None


def probe(path: Path | str) -> tuple[int, int, int]:
    """Sample rate in Hz, channels, and length in sample frames, from the header.

    Raises `AudioError` when the file is missing or no sound file.
    """
    with _opened(Path(path)) as sound:
        return int(sound.samplerate), int(sound.channels), int(sound.frames)


def _pieces(path: Path, rate: int) -> Iterator[Samples]:
    """Mono pieces at `rate`, checked, in file order; their sizes are of no meaning."""
    with _opened(path) as sound:
        source, promised = int(sound.samplerate), int(sound.frames)
        if rate < 1:
            raise ValueError(f"sample rate {rate} is not positive")
        resampler = None
        if source != rate:
            resampler = soxr.ResampleStream(source, rate, 1, dtype="float32", quality="HQ")
        read = 0
        while True:
            block = sound.read(_PIECE, dtype="float32", always_2d=True)
            if not np.isfinite(block).all():
                at = read + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise AudioError(
                    f"{path}: sample {at} ({at / source:.3f} s) is not a finite number; replace the file"
                )
            read += len(block)
            last = len(block) < _PIECE
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=last)
            yield np.ascontiguousarray(mono)
            if last:
                break
        if read == 0:
            raise AudioError(f"{path}: holds no samples; replace it")
        if read < promised - source:
            raise AudioError(
                f"{path}: ends after {read / source:.1f} s, its header promises {promised / source:.1f} s; "
                "the file is cut off"
            )


def stream_mono(path: Path | str, rate: int, block_seconds: float = 30.0) -> Iterator[Samples]:
    """Read a sound file as mono float32 at `rate` Hz, `block_seconds` at a time.

    Channels are averaged, then soxr ("HQ") resamples. All blocks have `rate * block_seconds`
    samples (rounded, at least 1) but the last, which has at least 1. The samples do not depend on
    `block_seconds`, and memory depends on nothing else.

    Raises `AudioError` naming the file: missing, unreadable, empty, cut off, or with a sample that
    is not finite (with its time). Faults in the middle show when the block is reached.
    """
    size = max(1, round(rate * block_seconds))
    held: list[Samples] = []
    have = total = 0
    for piece in _pieces(Path(path), rate):
        held.append(piece)
        have += len(piece)
        if have >= size:
            joined = np.concatenate(held)
            whole = have - have % size
            for start in range(0, whole, size):
                yield joined[start : start + size]
            held, have = [joined[whole:].copy()], have - whole
        total += len(piece)
    if have:
        yield np.concatenate(held)
    elif total == 0:  # one or two samples at a higher rate: less than one sample here
        yield np.zeros(1, np.float32)


def load_mono(path: Path | str, rate: int) -> Samples:
    """Read a whole sound file as mono float32 at `rate` Hz, shape `(samples,)`; see `stream_mono`."""
    return np.concatenate(list(stream_mono(path, rate)))
