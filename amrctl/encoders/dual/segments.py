"""A recording as segments of equal length, whole or as a stream.

Segment i begins at `i * hop`; the last one ends with the recording, so that a recording of at least
one segment's length is heard to its end and no segment is filled up. A shorter one is a single
segment with silence after it, as in the public baseline of DCASE 2025 task 6. That the last segment
is moved back instead of being filled up is ours; the paper gives length and hop only. What is left
after a segment is one more only if it is longer than a fiftieth of the hop: resamplers round lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def starts(length: int, segment: int, hop: int) -> list[int]:
    """First samples of the segments of a recording of `length` samples."""
    inner = range(0, length - segment - _slack(hop), hop)
    return [*inner, max(length - segment, 0)]


def _slack(hop: int) -> int:
    return hop // 50


def cut(samples: Samples, segment: int, hop: int) -> Samples:
    """`(S,)` to `(segments, segment)` float32."""
    return np.stack([piece for _, piece in stream([samples], segment, hop)])


def stream(blocks: Iterable[Samples], segment: int, hop: int) -> Iterator[tuple[int, Samples]]:
    """The segments of a recording that comes in blocks, each with its first sample and `(segment,)`
    samples; what is held is bounded.

    They do not depend on how the samples are divided, see `starts`. Raises `ValueError`: no samples.
    """
    held: Samples = np.zeros(0, np.float32)
    first = heard = given = 0  # of `held` its first sample; samples so far; segments given
    for block in blocks:
        held = np.concatenate([held, np.asarray(block, np.float32)])
        heard += len(block)
        # a segment is sure to be one of the grid only when more than the slack follows it
        while given * hop + segment + _slack(hop) < heard:
            at = given * hop - first
            yield given * hop, held[at : at + segment].copy()
            given += 1
        keep = max(min(given * hop, heard - segment) - first, 0)
        held, first = held[keep:], first + keep
    if not heard:
        raise ValueError("a recording without samples")
    last = np.zeros(segment, np.float32)
    tail = held[-segment:]
    last[: len(tail)] = tail
    yield max(heard - segment, 0), last
