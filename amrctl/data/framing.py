"""A sound file as frames: cutting a stream of samples into an encoder's windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from amrctl.data.audio import stream_mono
from amrctl.encoders.base import AudioEncoder, Rows

BATCH = 32  # windows or sentences that an encoder gets at a time


def frame_count(samples: int, rate: int, hop: float) -> int:
    """Frames of a recording: its whole hops, one more if at least half a hop remains, at least 1."""
    return max(1, int(np.floor(samples / (hop * rate) + 0.5)))


def windows(path: Path | str, encoder: AudioEncoder, block_seconds: float = 30.0) -> Iterator[Rows]:
    """Batches of an encoder's windows over a sound file, each `(n, window samples)`, n = `BATCH` but last.

    Window i begins at `i * hop` s; what it hears after the end of the file is silence. The batches
    do not depend on `block_seconds`. Raises `AudioError` as `stream_mono`.
    """
    rate = encoder.sample_rate
    size, step = round(encoder.window * rate), encoder.hop * rate
    need = max(size, int(np.ceil(step)))  # a window is cut only when it is sure to be a frame
    held = np.zeros(0, np.float32)
    first = done = 0  # sample at which `held` begins; windows cut so far
    ready: list[Rows] = []
    for block in stream_mono(path, rate, block_seconds):
        held = np.concatenate([held, block])
        while (start := round(done * step)) + need <= first + len(held):
            ready.append(held[start - first : start - first + size])
            done += 1
            if len(ready) == BATCH:
                yield np.stack(ready)
                ready = []
        keep = min(start, first + len(held))
        held, first = held[keep - first :], keep
        ready = [window.copy() for window in ready]  # else each keeps its whole block alive
    for i in range(done, frame_count(first + len(held), rate, encoder.hop)):
        start = max(round(i * step) - first, 0)
        window = np.zeros(size, np.float32)
        piece = held[start : start + size]
        window[: len(piece)] = piece
        ready.append(window)
        if len(ready) == BATCH:
            yield np.stack(ready)
            ready = []
    if ready:
        yield np.stack(ready)


def encode_file(path: Path | str, encoder: AudioEncoder, block_seconds: float = 30.0) -> Rows:
    """All frames of a sound file, `(frames, encoder.dim)` float32; see `frame_count`, `windows`."""
    return np.concatenate([encoder.encode(batch) for batch in windows(path, encoder, block_seconds)])
