"""Checkpoint and features → predictions: what validation, `predict` and `search` all run."""

from __future__ import annotations

from collections import defaultdict

import torch

from amrctl import registry
from amrctl.data.dataset import Moments
from amrctl.data.predictions import Prediction
from amrctl.errors import RecipeError
from amrctl.inference.decode import Piece, decode, join_saliency
from amrctl.model.detector import Detector
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import Recipe


def predict(
    detector: Detector,
    dataset: Moments,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    rounding: float = 0.0,
    saliency: bool = False,
    report: Reporter = SILENT,
) -> list[Prediction]:
    """Ranked windows for every query of `dataset`, in the manifest's order.

    `precision`: dtype of autocast, None for float32. `rounding`: step in seconds, 0 for none.
    `saliency`: keep the per-frame curve. The detector is left in evaluation mode.
    """
    detector.eval()
    score = registry.find("score", recipe.inference.score.kind).build(recipe.inference.score)
    pieces: dict[str, list[Piece]] = defaultdict(list)
    device = torch.device(device)
    dataset.place(device)
    chunks: dict[str, int] = defaultdict(int)
    for item in dataset.items:
        chunks[item.query.qid] = max(chunks[item.query.qid], item.start)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=precision, enabled=precision is not None),
        report.bar("predict", len(dataset), unit="queries") as bar,
    ):
        for batch in dataset.in_order():
            there = batch.to(device)
            output = detector(there)
            spans = output.refined
            if spans is None:
                if output.spans is None:
                    raise RecipeError("model.heads: prediction needs the head 'span'")
                spans = output.spans[-1]
            scores = score(output, there).float().cpu().numpy()
            curves = None
            if saliency:
                if output.saliency is None:
                    raise RecipeError("model.heads: a saliency curve needs the head 'saliency'")
                curves = output.saliency.float().cpu().numpy()
            found = spans.float().cpu().numpy()
            starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
            for b, (qid, seconds) in enumerate(zip(batch.qids, batch.seconds.tolist(), strict=True)):
                pieces[qid].append(
                    Piece(
                        offset=starts[b] * dataset.hop,
                        seconds=seconds,
                        spans=found[b],
                        scores=scores[b],
                        saliency=None if curves is None else curves[b, : lengths[b]],
                        first=starts[b] == 0,
                        last=starts[b] == chunks[qid],
                    )
                )
            bar.advance(len(batch))
    return [
        Prediction(
            qid=query.qid,
            query=query.query,
            vid=query.vid,
            duration=query.duration,
            windows=decode(
                pieces[query.qid],
                query.duration,
                dataset.hop,
                keep=recipe.inference.keep,
                rounding=rounding,
                official=dataset.official,
            ),
            saliency=join_saliency(pieces[query.qid], dataset.hop) if saliency else None,
            int_qid=query.int_qid,
        )
        for query in dataset.manifest
    ]
