"""`python -m benchmarks.same_training --official CLONE`: does the fast step train like the official one?

The official network, loss and loop, and ours in float32 and bfloat16, start from the same weights and see
the same batches of a set of the accuracy benchmark for the same number of epochs, each with dropout of
its own. Then all are asked about the validation queries. Seeds must spread more than the three differ. The
training loss, a mean over the queries of the last epoch, is the finer measure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifest
from amrctl.evaluation.moments import headline
from amrctl.inference.predict import predict
from amrctl.model import official as layout
from amrctl.model.detector import Detector, build
from amrctl.recipe import Recipe, load
from benchmarks import official
from benchmarks.accuracy.sets import DataSet
from benchmarks.accuracy.settings import HERE, REFERENCE, read_plan
from benchmarks.cases.training import formats, our_step, their_step
from benchmarks.official import Official

METRICS = ("R1@0.5", "R1@0.7", "mAP")
LOSS = "loss"
_CPU = torch.device("cpu")


def recipe_of(name: str, epochs: int, rate: float) -> Recipe:
    """The accuracy benchmark's row `qd-detr` on one of its sets, with the released behaviour.

    The rate stays constant; the official decoder knows one width, 256.
    """
    plan = read_plan()
    changes = plan.changes(plan.rows[REFERENCE], name, "finetune")
    own = ("model.hidden_dim=256", "compat=official", f"train.epochs={epochs}", f"train.optimizer.lr={rate}")
    return load(REFERENCE, "finetune", (*changes, *own))


def train(
    variant: str, seed: int, train_set: Moments, val_set: Moments, reference: Official
) -> tuple[dict[str, float], float]:
    """Validation metrics after the last epoch and its training loss, and the seconds that the steps took."""
    recipe = train_set.recipe
    torch.manual_seed(seed)
    detector = build(recipe, train_set.audio_dims, train_set.text_dims, training=True).train()
    network = None
    step: Callable[[Any], Any]
    if variant == "official":
        network, criterion = reference.build(detector, **_official_sizes(recipe, train_set))
        theirs = their_step(network, criterion, recipe)

        def step(batch: Any) -> Any:
            return theirs(official.inputs(batch), official.targets(batch))
    else:
        step = our_step(detector, recipe, "bf16" if variant == "bf16" else "fp32")
    began = time.perf_counter()
    for epoch in range(recipe.train.epochs):
        losses = [(step(batch), len(batch.audio_mask)) for batch in train_set.epoch(seed, epoch)]
    seconds = time.perf_counter() - began
    if network is not None:
        _take(detector, network.state_dict())
    found = predict(detector.eval(), val_set, recipe, device=_CPU, rounding=0)
    mean = sum(loss * queries for loss, queries in losses) / sum(queries for _, queries in losses)
    return {**headline(found, val_set.manifest, METRICS), LOSS: mean}, seconds


def _official_sizes(recipe: Recipe, data: Moments) -> dict[str, Any]:
    """What its configuration says where it is not the published size."""
    model = recipe.to_dict()["model"]
    return {
        "a_feat_dim": data.audio_dims[0],
        "t_feat_dim": data.text_dims[0],
        "hidden_dim": model["hidden_dim"],
        "nheads": model["decoder"]["heads"],
        "dim_feedforward": model["decoder"]["inner"],
        "input_dropout": model["tokens"]["dropout"],
    }


def _take(detector: Detector, weights: Mapping[str, Any]) -> None:
    """Put official weights into our network, which then gives the same spans (`benchmarks.run` checks it)."""
    own = detector.state_dict()
    taken = {name: weights[layout.theirs(name)] for name in own if not name.startswith("auxiliary.")}
    detector.load_state_dict({**own, **taken})


def lines(results: Mapping[str, Sequence[Mapping[str, float]]], seconds: Mapping[str, float]) -> list[str]:
    """A Markdown table: mean and standard deviation over seeds."""
    made = [f"| training | seeds | {' | '.join(METRICS)} | {LOSS} | s an epoch |", "|---|---:|" + "---:|" * 5]
    for variant, scores in results.items():
        cells = []
        for name in (*METRICS, LOSS):
            values, digits = [score[name] for score in scores], 3 if name == LOSS else 1
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        made.append(f"| {variant} | {len(scores)} | {' | '.join(cells)} | {seconds[variant]:.1f} |")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.same_training", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--official", type=Path, required=True, help="clone of the official baseline")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="of benchmarks.accuracy")
    parser.add_argument("--set", default="castella", help="of benchmarks.accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-4)
    chosen = parser.parse_args(arguments)
    reference, recipe = Official(chosen.official), recipe_of(chosen.set, chosen.epochs, chosen.rate)
    data = DataSet(chosen.set, chosen.work / chosen.set)
    with FeatureFile(data.features) as features:
        sets = [
            Moments(read_manifest(data.manifest(name)), features, recipe, training=name == "train")
            for name in ("train", "val")
        ]
    results: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    for seed in range(chosen.seeds):
        for variant in ("official", *formats()):
            scores, took = train(variant, seed, sets[0], sets[1], reference)
            results.setdefault(variant, []).append(scores)
            seconds[variant] = took / chosen.epochs
            print(variant, seed, scores, f"{took:.0f} s", flush=True)
    print("\n".join(lines(results, seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
