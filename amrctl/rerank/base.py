"""What a verifier is: a second opinion on whether a window holds what a sentence says.

Verifiers only judge windows that a detector proposed. Everything around them (which windows are
asked, batches, repeats, the cache on disk, the blend) is in `rerank.py` and `cache.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """One question: does `[start, end]` (seconds) of recording `vid` hold what `query` says?

    `duration` is the recording's length in seconds, NaN where the prediction file does not say it.
    """

    qid: str
    query: str
    vid: str
    duration: float
    start: float
    end: float


class VerifierError(Exception):
    """No usable answer this time (a lost connection, an answer that cannot be read).

    The same question is asked again, alone if it came in a batch; after the last try it becomes
    the user's error.
    """


class Verifier(Protocol):
    """A judge of candidates."""

    name: str
    version: str

    def fingerprint(self) -> str:
        """Text that changes whenever an answer could: weights, prompt, settings, fitted maps."""

    def evidence(self, candidate: Candidate) -> str:
        """Text that changes with what the verifier looks at for this candidate (a hash of the sound)."""

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        """One number in 0..1 a request, 1 = surely. Answers must not depend on the batch.

        Raises `VerifierError` where asking again may help, `AmrctlError` where it does not.
        """
