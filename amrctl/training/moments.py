"""Validation of a detector: windows for every set, metrics, and the files of the best epoch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from amrctl import provenance
from amrctl.data.predictions import Prediction, write_predictions
from amrctl.evaluation.moments import evaluate, headline
from amrctl.inference.predict import predict
from amrctl.model.detector import Detector
from amrctl.run_folder import RunFolder
from amrctl.training.task import Validated

if TYPE_CHECKING:
    from amrctl.training.run import Job


def validate(job: Job, network: Detector) -> Validated:
    """Predict and score every validation set; the first one's windows can be written."""
    scores: dict[str, dict[str, float]] = {}
    first: list[Prediction] = []
    for name, dataset in job.val:
        predictions = predict(network, dataset, job.recipe, device=job.device, rounding=job.rounding)
        first = first or predictions
        scores[name] = headline(predictions, dataset.manifest, job.recipe.train.metrics)
    return Validated(scores, partial(_write, job, first))


def _write(job: Job, predictions: list[Prediction], folder: RunFolder) -> None:
    dataset = job.val[0][1]
    best = folder.best()
    origin = job.provenance
    meta = {
        "operation": "validate",
        "checkpoints": [
            {
                "sha256": provenance.sha256(best),
                "path": str(best),
                "recipe": job.recipe.name,
                "trained_on": origin["trained_on"],
            }
        ],
        "audio_encoders": origin["encoders"]["audio"],
        "text_encoders": origin["encoders"]["text"],
        "datasets": [provenance.short(entry["path"]) for entry in origin["trained_on"]],
        "predicted": origin["inputs"]["val"][:1],
        "rounding": job.rounding,
        "origin": provenance.origin(),
    }
    write_predictions(folder.predictions, predictions, meta, overwrite=True)
    provenance.write_json(folder.metrics, evaluate(predictions, dataset.manifest))
