"""A checkpoint with its encoders, ready to answer sentences about recordings: what every search runs.

A recording is heard with the encoders that the checkpoint was trained on, in bounded memory; what
follows is what `predict` runs, chunks of long recordings included. Encoders are loaded when they are
first needed, and stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrctl import registry
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
from amrctl.errors import AmrctlError, CheckpointError, FeatureError
from amrctl.inference import predict as inference
from amrctl.model.checkpoint import Checkpoint, read, require_dims, restore
from amrctl.model.detector import Detector
from amrctl.pipeline.predict import pinned
from amrctl.pipeline.proposals import add_proposals
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import from_dict
from amrctl.run_folder import find_checkpoint
from amrctl.training.precision import pick_device, resolve

_SLOTS: dict[Side, str] = {"audio": AUDIO, "text": TEXT}


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


class Answerer:
    """The detector of a checkpoint and what it hears and reads with.

    `audio_encoders`, `text_encoders`: instead of those in the checkpoint, one for each of its streams,
    main stream first. `keep`: windows a query. `rounding`: seconds; None: what the checkpoint was
    trained for. Raises `AmrctlError` kinds when the checkpoint does not fit or names encoders that
    cannot run here.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        keep: int,
        sets: Sequence[str] = (),
        audio_encoders: Sequence[str] = (),
        text_encoders: Sequence[str] = (),
        rounding: float | None = None,
        saliency: bool = False,
        device: str = "auto",
        precision: str = "fp32",
        report: Reporter = SILENT,
    ) -> None:
        self.device = pick_device(device)
        self._precision = torch.bfloat16 if resolve(precision, self.device) == "bf16" else None
        self.path = find_checkpoint(checkpoint)
        self.checkpoint = read(self.path, sets=[*sets, f"inference.keep={keep}"])
        self.rounding = float(self.checkpoint.rounding) if rounding is None else rounding
        self.saliency, self.report = saliency, report
        given: dict[Side, Sequence[str]] = {"audio": audio_encoders, "text": text_encoders}
        self.specs: dict[str, list[str]] = {
            side: encoder_specs(side, self.checkpoint, given[side], self.path) for side in ("audio", "text")
        }
        self._told: set[str] = {side for side in given if not given[side]}
        self._hearers: dict[int, AudioEncoder] = {}
        self._readers: dict[int, TextEncoder] = {}

    @property
    def audio(self) -> list[dict[str, Any]]:
        """The checkpoint's audio streams as it tells of them, main stream first."""
        return self.checkpoint.features["audio"]

    @cached_property
    def _detector(self) -> Detector:
        return restore(self.checkpoint, where=str(self.path)).to(self.device)

    def hearer(self, stream: int) -> AudioEncoder:
        """The encoder of an audio stream. Raises `CheckpointError` when it cannot be had."""
        if stream not in self._hearers:
            told = {key: attribute(self.audio[stream], key) for key in ("window", "hop", "precision")}
            with self._loading("audio", stream):
                self._hearers[stream] = load_audio_encoder(self.specs["audio"][stream], **told)
        return self._hearers[stream]

    @contextlib.contextmanager
    def _loading(self, side: Side, stream: int) -> Iterator[None]:
        """What is wrong with an encoder that only the checkpoint names needs a word about where it was
        named: its weights may lie elsewhere now."""
        try:
            yield
        except AmrctlError as error:
            if side not in self._told:
                raise CheckpointError(str(error)) from None
            spec = self.specs[side][stream]
            raise CheckpointError(
                f"{self.path} was trained with the {side} encoder {spec}: {error}; if its weights lie "
                f"elsewhere, name it with --{side}-encoder, as {spec.partition(':')[0]}:WEIGHTS"
            ) from None

    def hear(self, stream: int, path: Path, name: str) -> Rows:
        """All frames of a recording for one audio stream, `(frames, dim)`, in the number format of
        training; the samples are never in memory as a whole."""
        encoder, trained = self.hearer(stream), self.audio[stream]
        rate, _, samples = probe(path)
        done: list[Rows] = []
        with self.report.bar(encoder.name, frames_of(encoder, samples, rate), unit="frames") as bar:
            for batch in windows(path, encoder):
                done.append(encoder.encode(batch))
                bar.advance(len(batch))
        return checked("audio", trained["name"], name, np.concatenate(done), 2, trained_dtype(trained))

    def read(self, sentences: Sequence[str], ids: Sequence[str]) -> list[list[Rows]]:
        """The rows of each sentence, for each text stream; `ids` are for messages."""
        found = []
        for stream, trained in enumerate(self.checkpoint.features["text"]):
            if stream not in self._readers:
                spec = self.specs["text"][stream]
                told = attribute(trained, "precision")
                with self._loading("text", stream):
                    self._readers[stream] = load_text_encoder(spec, precision=told)
            answers = self._readers[stream].encode(list(sentences))
            found.append(
                [
                    checked("text", trained["name"], id, answer.tokens, 2, trained_dtype(trained))
                    for id, answer in zip(ids, answers, strict=True)
                ]
            )
        return found

    def answer(
        self, queries: Sequence[Query], texts: Sequence[Sequence[Rows]], heard: Mapping[str, Sequence[Rows]]
    ) -> tuple[list[Prediction], float]:
        """Ranked windows of every query, and the seconds of a frame.

        `texts`: for each text stream the rows of each query; `heard`: vid → rows for each audio stream.
        """
        made = Made()
        ids = [query.qid for query in queries]
        for stream, trained in enumerate(self.checkpoint.features["text"]):
            made.add(_info("text", trained, self._readers.get(stream), len(ids)), ids, texts[stream])
        for stream, trained in enumerate(self.audio):
            info = _info("audio", trained, self._hearers.get(stream), len(heard))
            made.add(info, list(heard), [rows[stream] for rows in heard.values()])
        checkpoint = _for_any_length(self.checkpoint, made, self.path, self.report)
        recipe = pinned(checkpoint, made, str(self.path), self.report)
        dataset = Moments(Manifest(None, tuple(queries), ()), made, recipe, training=False)
        require_dims(
            checkpoint,
            dataset.audio_dims,
            dataset.text_dims,
            where=str(self.path),
            features=f"what {', '.join([*self.specs['audio'], *self.specs['text']])} give",
        )
        wanted = recipe.inference.saliency_proposals
        items = inference.predict(
            self._detector,
            dataset,
            recipe,
            device=self.device,
            precision=self._precision,
            rounding=self.rounding,
            saliency=self.saliency or wanted is not None,
            report=self.report,
        )
        if not all(np.isfinite(item.windows).all() for item in items):
            raise CheckpointError(
                f"{self.path} answers with values that are not finite; its training has diverged"
            )
        if wanted is not None:
            items = add_proposals(
                items,
                threshold=wanted.threshold,
                keep=wanted.keep,
                rounding=self.rounding,
                where=str(self.path),
            )
            if not self.saliency:
                items = [replace(item, saliency=None) for item in items]
        return items, dataset.hop


def encoder_specs(side: Side, checkpoint: Checkpoint, given: Sequence[str], path: Path) -> list[str]:
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


def attribute(trained: Mapping[str, Any], key: str) -> Any:
    """What a stream of the training says of itself, None where it does not."""
    return trained.get(key, trained.get("attrs", {}).get(key))


def trained_dtype(trained: Mapping[str, Any]) -> str:
    """Number format of the features in training, so that they are rounded alike here."""
    return str(trained.get("dtype", "float32"))


def _info(
    side: Side, trained: Mapping[str, Any], encoder: AudioEncoder | TextEncoder | None, n: int
) -> StreamInfo:
    """What a stream is, as its encoder says; where rows were found that equal those of the training, and
    so no encoder was loaded, as the training says."""
    attrs: Mapping[str, Any]
    if encoder is None:
        attrs = {"hop": trained.get("hop"), "encoder": trained.get("encoder"), **trained.get("attrs", {})}
    else:
        attrs = described(encoder)
    return StreamInfo(
        name=trained["name"],
        side=side,
        dim=int(trained["dim"]) if encoder is None else encoder.dim,
        count=n,
        dtype=trained_dtype(trained),
        window=attrs.get("window"),
        hop=attrs.get("hop"),
        encoder=str(attrs["encoder"]),
        checkpoint=attrs.get("checkpoint"),
        checkpoint_sha256=attrs.get("checkpoint_sha256"),
        sample_rate=attrs.get("sample_rate"),
        normalisation=attrs.get("normalisation"),
        space=attrs.get("space"),
        pooled=None,
        attrs=dict(attrs),
    )


def _for_any_length(checkpoint: Checkpoint, made: Made, path: Path, report: Reporter) -> Checkpoint:
    """The released code reads only the beginning of a long recording; here all of it is read."""
    recipe = checkpoint.recipe
    main = made.resolve("audio", checkpoint.features["audio"][0]["name"])
    frames = int(np.diff(made.load("audio", main.name).offsets).max())
    if recipe.compat != "official" or frames <= recipe.train.max_frames:
        return checkpoint
    report.note(
        f"{path} has compat=official, which reads only the first {recipe.train.max_frames} frames; "
        f"it is left out so that all {frames:,} are read"
    )
    return replace(checkpoint, recipe=from_dict(recipe.to_dict(), where=str(path), sets=["compat=null"]))
