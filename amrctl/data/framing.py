"""A sound as frames: cutting a stream of samples into an encoder's windows, in bounded memory.

Two grids. On the plain one window i begins at `i * hop` s. On the centred one half a window of silence
stands before and after the recording, and window i is centred on `i * hop` s. The centred grid ends as
the published extractor for it does; on the plain grid an encoder says how its last window is treated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amrctl.data.audio import Samples, Sound, stream_mono
from amrctl.encoders.base import BATCH, AudioEncoder, Rows

__all__ = ["BATCH", "Framer", "batch_of", "encode_file", "frame_count", "frames_of", "windows"]

# Resamplers round a length up or down: a window that lacks this many samples at the end is whole.
_SLACK = 2


def frame_count(
    samples: int, rate: int, hop: float, *, window: float = 1.0, grid: str = "plain", tail: str = "round"
) -> int:
    """Frames of a recording, at least 1.

    Plain grid, tail "round": its whole hops, one more if at least half a hop remains; "floor": the
    windows that lie wholly in it. Centred grid: the frames whose centre lies in it, both ends
    included. A recording of 60 s with window and hop 1 s has 60, 60 and 61; one of 59.7 s 60, 59 and 60.
    """
    step = hop * rate
    if grid == "centred":
        return int((samples + _SLACK) / step + 1e-9) + 1
    if tail == "floor":
        return max(1, int(np.floor((samples - round(window * rate) + _SLACK) / step + 1e-9)) + 1)
    return max(1, int(np.floor(samples / step + 0.5)))


def frames_of(encoder: AudioEncoder, samples: int, rate: int) -> int:
    """Frames that `encoder` makes of a recording of `samples` at `rate` Hz; see `frame_count`."""
    return frame_count(
        samples, rate, encoder.hop, window=encoder.window, grid=_grid(encoder), tail=_tail(encoder)
    )


def batch_of(encoder: AudioEncoder) -> int:
    """Windows that `encoder` gets at a time."""
    return int(getattr(encoder, "batch", BATCH))


def _grid(encoder: AudioEncoder) -> str:
    return str(getattr(encoder, "grid", "plain"))


def _tail(encoder: AudioEncoder) -> str:
    return str(getattr(encoder, "tail", "round"))


class Framer:
    """Cuts one recording into the windows of one encoder: `push` its samples, then `finish`.

    Windows are `(round(window * sample_rate),)` float32, in order; what they hear beyond the recording
    is silence. They do not depend on how the samples are divided among the calls.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        self._encoder = encoder
        rate = encoder.sample_rate
        self._size, self._step = round(encoder.window * rate), encoder.hop * rate
        self._pad = self._size // 2 if _grid(encoder) == "centred" else 0
        # A window is cut only when it is sure to be a frame.
        rounds = _grid(encoder) == "plain" and _tail(encoder) == "round"
        self._need = max(self._size, int(np.ceil(self._step))) if rounds else self._size
        self._held: Samples = np.zeros(self._pad, np.float32)
        self._first = self._done = self._heard = 0  # first sample of `_held`; windows cut; samples in

    def push(self, samples: Samples) -> list[Samples]:
        """Take the next samples; the windows that they complete, copies."""
        self._heard += len(samples)
        held = np.concatenate([self._held, samples])
        ready = []
        while (start := round(self._done * self._step)) + self._need <= self._first + len(held):
            ready.append(held[start - self._first : start - self._first + self._size].copy())
            self._done += 1
        keep = min(start, self._first + len(held))
        self._held, self._first = held[keep - self._first :].copy(), keep
        return ready

    def finish(self) -> list[Samples]:
        """The windows that are left when the recording has ended."""
        ready = []
        for i in range(self._done, frames_of(self._encoder, self._heard, self._encoder.sample_rate)):
            start = max(round(i * self._step) - self._first, 0)
            window = np.zeros(self._size, np.float32)
            piece = self._held[start : start + self._size]
            window[: len(piece)] = piece
            ready.append(window)
        return ready


def windows(sound: Sound | str, encoder: AudioEncoder, block_seconds: float = 30.0) -> Iterator[Rows]:
    """Batches of an encoder's windows over a sound, each `(n, window samples)`, full but the last.

    The batches do not depend on `block_seconds`. Raises `AudioError` as `stream_mono`.
    """
    framer, batch = Framer(encoder), batch_of(encoder)
    ready: list[Samples] = []
    for block in stream_mono(sound, encoder.sample_rate, block_seconds):
        ready += framer.push(block)
        while len(ready) >= batch:
            yield np.stack(ready[:batch])
            del ready[:batch]
    ready += framer.finish()
    for start in range(0, len(ready), batch):
        yield np.stack(ready[start : start + batch])


def encode_file(sound: Sound | str, encoder: AudioEncoder, block_seconds: float = 30.0) -> Rows:
    """All frames of a sound, `(frames, encoder.dim)` float32; see `frame_count`, `windows`."""
    return np.concatenate([encoder.encode(batch) for batch in windows(sound, encoder, block_seconds)])
