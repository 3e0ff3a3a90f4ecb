"""The embedded verifier: how well a window covers the seconds that are similar to the sentence.

Every frame of the recording gets a similarity to the sentence's mean token. A window is judged by
the correlation between "inside the window or not" and that curve, over the recording's time:

    r = (mean inside - mean of the recording) / (spread of the curve) * sqrt(p / (1 - p))

with p the window's share of the recording. By Cauchy and Schwarz r lies in -1..1; the answer is
(1 + r) / 2. It is high when the similar seconds lie inside and the others outside, so that a window
which is too long or too short loses, and it does not depend on how loud or how uniform a recording
is. The whole recording, or a flat curve, is 0.5: no evidence.

The similarity of a frame is
- the cosine with the sentence where both streams carry the same `space` attribute;
- else the product with a direction that a ridge map predicts from the sentence. The map is fitted on
  labelled queries: standardised mean tokens → mean frame inside the labelled windows less mean frame
  outside, per feature in units of its spread inside recordings. Its strength is the one of 15, spaced
  by factors of sqrt(10) around the mean squared singular value, with the smallest squared error when
  each recording is left out in turn (exactly, from the hat matrix); equal errors take the stronger.

Ours; no paper describes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl.data.features import FeatureFile, Packed, Side, StreamInfo
from amrctl.data.manifest import Manifest, Query
from amrctl.errors import FeatureError, ManifestError
from amrctl.rerank.base import Candidate
from amrctl.spans import frame_coverage

Floats = npt.NDArray[np.float64]
STEPS = tuple(10.0 ** (k / 2) for k in range(-6, 9))


@dataclass(frozen=True)
class RidgeMap:
    """`direction = ((x - mean) / spread) @ weights + offset`, ready to multiply raw audio frames.

    `mean`, `spread` `(Dt,)`; `weights` `(Dt, Da)`; `offset` `(Da,)`; all float64. `strength`: the
    chosen penalty; `queries`: how many it was fitted on; `inputs`: hash of what it was fitted on.
    """

    mean: Floats
    spread: Floats
    weights: Floats
    offset: Floats
    strength: float
    queries: int
    inputs: str

    def __call__(self, sentence: Floats) -> Floats:
        """Mean token `(Dt,)` → direction `(Da,)`."""
        return np.asarray(((sentence - self.mean) / self.spread) @ self.weights + self.offset)


class SimilarityVerifier:
    """See the module. `audio` and `text` name streams of the feature file (`auto` = the only one).

    Loads the features of `vids` and `qids` only. `train`: labelled queries for the ridge map, used
    where the streams share no space. Raises `FeatureError` (missing ids, ambiguous streams, nothing
    that joins sound and text), `ManifestError` (queries that the map cannot be fitted on).
    """

    name = "similarity"
    version = "1"
    parameters = 0  # of networks

    def __init__(
        self,
        features: FeatureFile,
        vids: Iterable[str],
        qids: Iterable[str],
        *,
        audio: str = "auto",
        text: str = "auto",
        train: Manifest | None = None,
    ) -> None:
        self.audio, self.text = _stream(features, "audio", audio), _stream(features, "text", text)
        if not self.audio.hop or self.audio.hop <= 0:
            raise FeatureError(f"{features.path}: audio stream '{self.audio.name}' does not tell its hop")
        self.hop = self.audio.hop
        self.same_space = self.audio.space is not None and self.audio.space == self.text.space
        if not self.same_space and train is None:
            raise FeatureError(
                f"{features.path}: audio stream '{self.audio.name}' and text stream '{self.text.name}' share "
                "no space; give labelled queries with --train MANIFEST to learn a map between them"
            )
        ids = list(dict.fromkeys(qids))
        self._frames = features.load("audio", self.audio.name, list(vids))
        self._sentences = self._read_sentences(features, ids)
        self.map = None
        if not self.same_space and train is not None:
            self.map = fit_map(features, self.audio, self.text, train)
        self._hashes: dict[str, str] = {}

    @property
    def kind(self) -> str:
        """`cosine` or `ridge`."""
        return "cosine" if self.map is None else "ridge"

    @property
    def told(self) -> str:
        """`cosine` or `ridge`."""
        return self.kind

    def facts(self) -> Mapping[str, Any]:
        """What provenance keeps."""
        return {"kind": self.kind}

    def fingerprint(self) -> str:
        """The streams' encoders and, for the ridge map, a hash of what it was fitted on."""
        parts = [self.kind, repr(self.hop)]
        for info in (self.audio, self.text):
            parts += [info.name, info.encoder, info.checkpoint_sha256 or ""]
        return " | ".join([*parts, self.map.inputs if self.map else ""])

    def evidence(self, candidate: Candidate) -> str:
        """Hash of the recording's frames and the sentence's vector."""
        if candidate.vid not in self._hashes:
            self._hashes[candidate.vid] = _hash(self._frames.get(candidate.vid))
        return self._hashes[candidate.vid] + _hash(self._sentences[candidate.qid])

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        """One answer in 0..1 a request."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((request.vid, request.qid), []).append(i)
        answers = np.empty(len(requests))
        for (vid, qid), places in groups.items():
            windows = np.array([[requests[i].start, requests[i].end] for i in places])
            answers[places] = (1 + correlation(self._curve(vid, qid), windows / self.hop)) / 2
        return [float(a) for a in answers]

    def _curve(self, vid: str, qid: str) -> Floats:
        frames = self._frames.get(vid).astype(np.float64)
        sentence = self._sentences[qid]
        if self.map is not None:
            return np.asarray(frames @ self.map(sentence))
        lengths = np.linalg.norm(frames, axis=1) * np.linalg.norm(sentence)
        cosine = np.zeros(len(frames))
        np.divide(frames @ sentence, lengths, out=cosine, where=lengths > 0)
        return cosine

    def _read_sentences(self, features: FeatureFile, qids: list[str]) -> dict[str, Floats]:
        """Mean token of every query; in a shared space the pooled vector where only that one fits."""
        if self.same_space and self.text.dim != self.audio.dim:
            if self.text.pooled != self.audio.dim:
                raise FeatureError(
                    f"{features.path}: audio stream '{self.audio.name}' has {self.audio.dim} numbers a "
                    f"frame, text stream '{self.text.name}' {self.text.dim} a token, yet both name the space "
                    f"'{self.audio.space}'; make one of them again with extract-tef"
                )
            vectors = features.pooled(self.text.name, qids)
            assert vectors is not None  # the stream has a pooled width
            return dict(zip(qids, vectors.astype(np.float64), strict=True))
        return _mean_tokens(features.load("text", self.text.name, qids), qids)


def correlation(curve: Floats, windows: Floats) -> Floats:
    """Correlation in -1..1 of windows `(n, 2)`, in frames, with a curve `(T,)` that is constant in
    each frame; 0 for windows outside, for the whole, and for a flat curve."""
    total = len(curve)
    level = curve - curve.mean()
    spread = math.sqrt(float(np.mean(level**2)))
    if not spread > 1e-12 * max(1.0, float(np.abs(curve).max(initial=0.0))):
        return np.zeros(len(windows))
    area = np.concatenate([[0.0], np.cumsum(level)])
    edges = np.clip(windows, 0.0, total)
    inside = np.diff(np.interp(edges, np.arange(total + 1), area), axis=1)[:, 0]
    share = (edges[:, 1] - edges[:, 0]) / total
    scale = np.sqrt(share * (1 - share)) * spread * total
    r = np.zeros(len(windows))
    np.divide(inside, scale, out=r, where=scale > 1e-9 * spread * total)
    return np.clip(r, -1.0, 1.0)


def fit_map(features: FeatureFile, audio: StreamInfo, text: StreamInfo, train: Manifest) -> RidgeMap:
    """The ridge map of the module's docstring, in closed form, float64."""
    where = train.path or "the labelled queries"
    queries = [q for q in train if q.windows]
    tokens = _mean_tokens(features.load("text", text.name, qids := [q.qid for q in queries]), qids)
    assert audio.hop is not None  # checked by the verifier
    by_vid: dict[str, list[Query]] = {}
    for query in queries:
        by_vid.setdefault(query.vid, []).append(query)
    x, y, group = [], [], []
    variance, frames_seen = np.zeros(audio.dim), 0
    vids = list(by_vid)
    for begin in range(0, len(vids), 64):  # a block of recordings in memory at a time
        block = features.load("audio", audio.name, vids[begin : begin + 64])
        for vid in vids[begin : begin + 64]:
            frames = block.get(vid).astype(np.float64)
            variance += ((frames - frames.mean(axis=0)) ** 2).sum(axis=0)
            frames_seen += len(frames)
            for query in by_vid[vid]:
                inside = frame_coverage(query.windows or (), len(frames), audio.hop)
                if min(inside.sum(), (1 - inside).sum()) < 0.5:
                    continue  # nothing, or everything, is labelled: no contrast
                x.append(tokens[query.qid])
                y.append((inside @ frames) / inside.sum() - ((1 - inside) @ frames) / (1 - inside).sum())
                group.append(vid)
    if len(set(group)) < 2:
        raise ManifestError(
            f"{where}: a map needs labelled windows in at least 2 recordings, here are {len(set(group))}"
        )
    spread = np.sqrt(variance / frames_seen)
    spread[spread == 0] = 1.0
    inputs, targets = np.array(x), np.array(y)
    fitted = _ridge(inputs, targets / spread, group)
    mean, scale, weights, offset, strength = fitted
    # one division by the spread belongs to the prediction, the other to the frames it will meet
    return RidgeMap(
        mean,
        scale,
        weights / spread,
        offset / spread,
        strength,
        len(x),
        hashlib.sha256((_hash(inputs) + _hash(targets) + _hash(spread)).encode()).hexdigest(),
    )


def _ridge(x: Floats, y: Floats, group: list[str]) -> tuple[Floats, Floats, Floats, Floats, float]:
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-12] = 1.0
    offset = y.mean(axis=0)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    rest = y - offset
    uy = u.T @ rest
    base = max(float(np.mean(s**2)), 1e-12)
    places: dict[str, list[int]] = {}
    for i, name in enumerate(group):
        places.setdefault(name, []).append(i)
    best, strength = math.inf, base
    for step in STEPS:
        shrink = s**2 / (s**2 + step * base)
        error = rest - (u * shrink) @ uy
        left_out = 0.0
        for rows in places.values():
            hat = (u[rows] * shrink) @ u[rows].T
            left_out += float((np.linalg.solve(np.eye(len(rows)) - hat, error[rows]) ** 2).sum())
        if left_out <= best:
            best, strength = left_out, step * base
    weights = vt.T @ ((s / (s**2 + strength))[:, None] * uy)
    return mean, scale, weights, offset, strength


def _mean_tokens(packed: Packed, qids: Iterable[str]) -> dict[str, Floats]:
    return {qid: packed.get(qid).astype(np.float64).mean(axis=0) for qid in qids}


def _hash(array: npt.NDArray[np.floating]) -> str:
    return hashlib.sha256(repr((array.shape, str(array.dtype))).encode() + array.tobytes()).hexdigest()


def _stream(features: FeatureFile, side: Side, name: str) -> StreamInfo:
    known = list(features.streams(side))
    if name == "auto" and len(known) > 1:
        raise FeatureError(
            f"{features.path} holds {len(known)} {side} streams ({', '.join(known)}); "
            f"name one with --{side}-stream"
        )
    return features.resolve(side, name)
