"""What a verifier is: a second opinion on whether a window holds what a sentence says.

Verifiers only judge windows that a detector proposed. Everything around them (which windows are
asked, batches, repeats, the cache on disk, the blend) is in `rerank.py`, `asking.py`, `cache.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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

    The same question is asked again, alone if it came in a batch; after the last try the window has
    no answer. `again` false: asking again is no use. `after`: seconds to wait at least, as a server
    asked for.
    """

    def __init__(self, reason: str, *, again: bool = True, after: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.after = again, after


class Verifier(Protocol):
    """A judge of candidates.

    `told`: a few words that identify it beyond its name, for reports and submissions. `parameters`:
    of a network that came with it, 0 where there is none, None where that is not known.
    """

    name: str
    version: str

    @property
    def told(self) -> str: ...

    @property
    def parameters(self) -> int | None: ...

    def facts(self) -> Mapping[str, Any]:
        """What provenance keeps about it, JSON values: weights and their hash, prompt version, ..."""

    def fingerprint(self) -> str:
        """Text that changes whenever an answer could: weights, prompt, settings, fitted maps."""

    def evidence(self, candidate: Candidate) -> str:
        """Text that changes with what the verifier looks at for this candidate (a hash of the sound)."""

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        """One number in 0..1 a request, 1 = surely. Answers must not depend on the batch.

        Raises `VerifierError` where asking again may help, or where only this question has no
        answer; `AmrctlError` where no question will have one.
        """
