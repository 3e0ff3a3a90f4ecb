"""A checkpoint, any sound file and sentences → ranked moments, without a file in between.

The recording is heard with the encoders that the checkpoint was trained on, in bounded memory; what
follows is what `predict` runs, chunks of long recordings included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrctl import provenance, registry
from amrctl.data.audio import probe
from amrctl.data.dataset import Moments
from amrctl.data.extract import described
from amrctl.data.feature_packing import checked
from amrctl.data.features import Packed, Rows, Side, StreamInfo
from amrctl.data.framing import frames_of, windows
from amrctl.data.manifest import Manifest, Query
from amrctl.data.predictions import Prediction
from amrctl.encoders.base import (
    AUDIO,
    TEXT,
    AudioEncoder,
    TextEncoder,
    load_audio_encoder,
    load_text_encoder,
    needs_weights,
)
from amrctl.ensemble.pool import pool
from amrctl.errors import AmrctlError, CheckpointError, FeatureError
from amrctl.inference import predict as inference
from amrctl.model.checkpoint import Checkpoint, read, require_dims, restore
from amrctl.pipeline.predict import pinned
from amrctl.pipeline.proposals import add_proposals
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import from_dict
from amrctl.run_folder import find_checkpoint
from amrctl.training.precision import pick_device, resolve

_ALL = 1000  # windows a sentence that near copies are looked for in
_SLOTS: dict[Side, str] = {"audio": AUDIO, "text": TEXT}


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


class Made:
    """Streams made on the spot, each `(description, rows)`; a `FeatureSource`."""

    def __init__(self) -> None:
        self._known: dict[Side, dict[str, tuple[StreamInfo, Packed]]] = {"audio": {}, "text": {}}

    def add(self, info: StreamInfo, ids: Sequence[str], pieces: Sequence[Rows]) -> None:
        """Put in a stream: the rows `(length, D)` of each id."""
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        packed = Packed(np.concatenate(pieces), offsets, {id: i for i, id in enumerate(ids)})
        self._known[info.side][info.name] = info, packed

    def streams(self, side: Side) -> Mapping[str, StreamInfo]:
        """Name → description of every stream of one side."""
        return {name: info for name, (info, _) in self._known[side].items()}

    def resolve(self, side: Side, name: str) -> StreamInfo:
        """The stream of that name; `auto` is the only one there is. Raises `FeatureError`."""
        known = self._known[side]
        if name == "auto" and len(known) == 1:
            return next(iter(known.values()))[0]
        if name not in known:
            raise FeatureError(f"the checkpoint does not tell which {side} encoder made its stream '{name}'")
        return known[name][0]

    def load(self, side: Side, name: str, ids: Sequence[str] | None = None) -> Packed:
        """The rows of all ids: there are no others than those asked for."""
        return self._known[side][name][1]


def search(request: SearchRequest, report: Reporter = SILENT) -> Found:
    """Find the moments of each sentence in one recording; see `Found`.

    Raises `AmrctlError` kinds: unreadable sound, a checkpoint that does not fit or whose encoders
    cannot run here, an empty sentence, settings out of range.
    """
    _check(request)
    device = pick_device(request.device)
    precision = resolve(request.precision, device)
    path = find_checkpoint(request.checkpoint)
    # Near copies are dropped from all the model says, so that `top` are left where there are as many.
    checkpoint = read(path, sets=[*request.sets, f"inference.keep={max(request.top, _ALL)}"])
    rate, _, samples = probe(request.audio)
    given: dict[Side, tuple[str, ...]] = {"audio": request.audio_encoders, "text": request.text_encoders}
    specs: dict[str, list[str]] = {
        side: _specs(side, checkpoint, given[side], path) for side in ("audio", "text")
    }
    queries = tuple(
        Query(str(i), sentence, request.audio.name, samples / rate, None, int_qid=True)
        for i, sentence in enumerate(request.sentences, 1)
    )
    made = _features(request.audio, queries, checkpoint, specs, report)
    checkpoint = _for_any_length(checkpoint, made, path, report)
    recipe = pinned(checkpoint, made, str(path), report)
    dataset = Moments(Manifest(None, queries, ()), made, recipe, training=False)
    require_dims(
        checkpoint,
        dataset.audio_dims,
        dataset.text_dims,
        where=str(path),
        features=f"what {', '.join([*specs['audio'], *specs['text']])} give",
    )
    rounding = float(checkpoint.rounding) if request.rounding is None else request.rounding
    items = inference.predict(
        restore(checkpoint, where=str(path)).to(device),
        dataset,
        recipe,
        device=device,
        precision=torch.bfloat16 if precision == "bf16" else None,
        rounding=rounding,
        saliency=request.saliency or recipe.inference.saliency_proposals is not None,
        report=report,
    )
    if not all(np.isfinite(item.windows).all() for item in items):
        raise CheckpointError(f"{path} answers with values that are not finite; its training has diverged")
    if recipe.inference.saliency_proposals is not None:
        wanted = recipe.inference.saliency_proposals
        items = add_proposals(
            items, threshold=wanted.threshold, keep=wanted.keep, rounding=rounding, where=str(path)
        )
        if not request.saliency:
            items = [replace(item, saliency=None) for item in items]
    items = pool([items], keep=request.top, copies_iou=request.drop_copies)
    return Found(
        audio=request.audio,
        duration=samples / rate,
        hop=dataset.hop,
        checkpoint=path,
        checkpoint_sha256=provenance.sha256(path),
        recipe=recipe.name,
        encoders=specs,
        rounding=rounding,
        items=tuple(
            replace(item, windows=item.windows[item.windows[:, 2] >= request.min_score]) for item in items
        ),
        best=tuple(float(item.windows[:, 2].max(initial=0.0)) for item in items),
    )


def _check(request: SearchRequest) -> None:
    if not request.sentences:
        raise AmrctlError("nothing to search for: give at least one sentence")
    for i, sentence in enumerate(request.sentences, 1):
        if not sentence.strip():
            raise AmrctlError(f"sentence {i} of {len(request.sentences)} is empty")
    if request.top < 1:
        raise AmrctlError(f"--top {request.top}: at least 1 moment a sentence")
    for option, value in (("--min-score", request.min_score), ("--drop-copies", request.drop_copies)):
        if not 0 <= value <= 1:
            raise AmrctlError(f"{option} {value:g} is not in 0..1")


def _specs(side: Side, checkpoint: Checkpoint, given: Sequence[str], path: Path) -> list[str]:
    """How each of the checkpoint's encoders is spelt, or those `given` instead."""
    streams = checkpoint.features[side]
    if given:
        if len(given) != len(streams):
            raise CheckpointError(
                f"{path} reads {len(streams)} {side} streams, --{side}-encoder names {len(given)}; "
                "name one for each, main stream first"
            )
        return list(given)
    known = registry.kinds(_SLOTS[side])
    specs = []
    for stream in streams:
        encoder, weights = stream["encoder"], stream.get("attrs", {}).get("checkpoint")
        if encoder not in known or (weights is None and needs_weights(_SLOTS[side], encoder)):
            raise CheckpointError(
                f"{path} was trained on {side} features of encoder '{encoder}' ({stream['dim']} numbers a "
                f"{'frame' if side == 'audio' else 'token'}), which cannot run here (there is: "
                f"{', '.join(known)}); bring its features with extract-tef --{side}-npz and use predict, "
                f"or name the same encoder with --{side}-encoder"
            )
        specs.append(f"{encoder}:{weights}" if weights else str(encoder))
    return specs


def _features(
    audio: Path,
    queries: Sequence[Query],
    checkpoint: Checkpoint,
    specs: Mapping[str, Sequence[str]],
    report: Reporter,
) -> Made:
    """Hear the recording and read the sentences, each stream in the number format of training."""
    made = Made()
    # Sentences first: they are quick, and faults in them show before an hour of audio.
    for trained, spec in zip(checkpoint.features["text"], specs["text"], strict=True):
        reader = load_text_encoder(spec, precision=_told(trained, "precision"))
        answers = reader.encode([query.query for query in queries])
        ids = [query.qid for query in queries]
        pieces = [
            checked("text", trained["name"], id, answer.tokens, 2, _dtype(trained))
            for id, answer in zip(ids, answers, strict=True)
        ]
        made.add(_info("text", trained, reader, len(ids)), ids, pieces)
    for trained, spec in zip(checkpoint.features["audio"], specs["audio"], strict=True):
        hearer = load_audio_encoder(
            spec, **{key: _told(trained, key) for key in ("window", "hop", "precision")}
        )
        rows = checked("audio", trained["name"], audio.name, _hear(audio, hearer, report), 2, _dtype(trained))
        made.add(_info("audio", trained, hearer, 1), [audio.name], [rows])
    return made


def _hear(path: Path, encoder: AudioEncoder, report: Reporter) -> Rows:
    """All frames of the recording, `(frames, dim)`; the samples are never in memory as a whole."""
    rate, _, samples = probe(path)
    frames = frames_of(encoder, samples, rate)
    done: list[Rows] = []
    with report.bar(encoder.name, frames, unit="frames") as bar:
        for batch in windows(path, encoder):
            done.append(encoder.encode(batch))
            bar.advance(len(batch))
    return np.concatenate(done)


def _told(trained: Mapping[str, Any], key: str) -> Any:
    """What a stream of the training says of itself, None where it does not."""
    return trained.get(key, trained.get("attrs", {}).get(key))


def _dtype(trained: Mapping[str, Any]) -> str:
    """Number format of the features in training, so that they are rounded alike here."""
    return str(trained.get("dtype", "float32"))


def _info(side: Side, trained: Mapping[str, Any], encoder: AudioEncoder | TextEncoder, n: int) -> StreamInfo:
    attrs = described(encoder)
    return StreamInfo(
        name=trained["name"],
        side=side,
        dim=encoder.dim,
        count=n,
        dtype=_dtype(trained),
        window=attrs.get("window"),
        hop=attrs.get("hop"),
        encoder=encoder.name,
        checkpoint=attrs.get("checkpoint"),
        checkpoint_sha256=attrs.get("checkpoint_sha256"),
        sample_rate=attrs.get("sample_rate"),
        normalisation=attrs.get("normalisation"),
        space=attrs.get("space"),
        pooled=None,
        attrs=attrs,
    )


def _for_any_length(checkpoint: Checkpoint, made: Made, path: Path, report: Reporter) -> Checkpoint:
    """The released code reads only the beginning of a long recording; here all of it is read."""
    recipe = checkpoint.recipe
    main = made.resolve("audio", checkpoint.features["audio"][0]["name"])
    frames = len(made.load("audio", main.name).rows)
    if recipe.compat != "official" or frames <= recipe.train.max_frames:
        return checkpoint
    report.note(
        f"{path} has compat=official, which reads only the first {recipe.train.max_frames} frames; "
        f"it is left out so that all {frames:,} are read"
    )
    return replace(checkpoint, recipe=from_dict(recipe.to_dict(), where=str(path), sets=["compat=null"]))
