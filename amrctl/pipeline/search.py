"""A checkpoint, any sound file and sentences → ranked moments, without a file in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.data.audio import probe
from amrctl.data.manifest import Query
from amrctl.data.predictions import Prediction
from amrctl.ensemble.pool import pool
from amrctl.errors import AmrctlError
from amrctl.pipeline.answering import Answerer
from amrctl.progress import SILENT, Reporter

MOST = 1000  # windows a sentence that near copies are looked for in


@dataclass(frozen=True)
class SearchRequest:
    """What `search` is asked for. `audio_encoders`, `text_encoders`: instead of those in the
    checkpoint, one for each of its streams, main stream first."""

    audio: Path
    sentences: tuple[str, ...]
    checkpoint: Path
    top: int = 3  # moments a sentence
    min_score: float = 0.0  # 0..1
    drop_copies: float = 0.95  # IoU above which the worse of two moments is left out; 1: none is
    rounding: float | None = None  # seconds; None: what the checkpoint was trained for
    saliency: bool = False
    audio_encoders: tuple[str, ...] = ()
    text_encoders: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"


@dataclass(frozen=True)
class Found:
    """What `search` answers. `duration`, `hop`: seconds; `items`: one per sentence, in order;
    `best`: each sentence's best score before `min_score`; `encoders`: side → spellings."""

    audio: Path
    duration: float
    hop: float
    checkpoint: Path
    checkpoint_sha256: str
    recipe: str
    encoders: dict[str, list[str]]
    rounding: float
    items: tuple[Prediction, ...]
    best: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: times in seconds, scores 0..1, saliency raw, one value per hop."""
        queries = []
        for item in self.items:
            rows = item.to_json()
            moments = [{"start": s, "end": e, "score": p} for s, e, p in rows["pred_relevant_windows"]]
            query: dict[str, Any] = {"query": item.query, "moments": moments}
            if "pred_saliency_scores" in rows:
                query |= {"saliency": rows["pred_saliency_scores"], "saliency_step": self.hop}
            queries.append(query)
        return {
            "audio": str(self.audio),
            "duration": provenance.number(self.duration),
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": self.checkpoint_sha256,
            "recipe": self.recipe,
            "encoders": self.encoders,
            "rounding": provenance.number(self.rounding),
            "queries": queries,
        }


def search(request: SearchRequest, report: Reporter = SILENT) -> Found:
    """Find the moments of each sentence in one recording; see `Found`.

    Raises `AmrctlError` kinds: unreadable sound, a checkpoint that does not fit or whose encoders
    cannot run here, an empty sentence, settings out of range.
    """
    check(request.sentences, request.top, request.min_score, request.drop_copies)
    # Near copies are dropped from all the model says, so that `top` are left where there are as many.
    answerer = Answerer(
        request.checkpoint,
        keep=max(request.top, MOST),
        sets=request.sets,
        audio_encoders=request.audio_encoders,
        text_encoders=request.text_encoders,
        rounding=request.rounding,
        saliency=request.saliency,
        device=request.device,
        precision=request.precision,
        report=report,
    )
    name = request.audio.name
    rate, _, samples = probe(request.audio)
    queries = [
        Query(str(i), sentence, name, samples / rate, None, int_qid=True)
        for i, sentence in enumerate(request.sentences, 1)
    ]
    # Sentences first: they are quick, and faults in them show before an hour of audio.
    texts = answerer.read(request.sentences, [query.qid for query in queries])
    heard = [answerer.hear(stream, request.audio, name) for stream in range(len(answerer.audio))]
    items, hop = answerer.answer(queries, texts, {name: heard})
    items = pool([items], keep=request.top, copies_iou=request.drop_copies)
    return Found(
        audio=request.audio,
        duration=samples / rate,
        hop=hop,
        checkpoint=answerer.path,
        checkpoint_sha256=provenance.sha256(answerer.path),
        recipe=answerer.checkpoint.recipe.name,
        encoders=answerer.specs,
        rounding=answerer.rounding,
        items=tuple(
            replace(item, windows=item.windows[item.windows[:, 2] >= request.min_score]) for item in items
        ),
        best=tuple(float(item.windows[:, 2].max(initial=0.0)) for item in items),
    )


def check(sentences: tuple[str, ...], top: int, min_score: float, drop_copies: float) -> None:
    """Raise `AmrctlError` for what no search can be asked for."""
    if not sentences:
        raise AmrctlError("nothing to search for: give at least one sentence")
    for i, sentence in enumerate(sentences, 1):
        if not sentence.strip():
            raise AmrctlError(f"sentence {i} of {len(sentences)} is empty")
    if top < 1:
        raise AmrctlError(f"--top {top}: at least 1 moment a sentence")
    for option, value in (("--min-score", min_score), ("--drop-copies", drop_copies)):
        if not 0 <= value <= 1:
            raise AmrctlError(f"{option} {value:g} is not in 0..1")
