"""Steps of several seeds in one program beside the same seeds in turn."""

from __future__ import annotations

import copy
from functools import partial

import torch

from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion
from amrctl.training.stacked import Program, Weights, clip_each
from benchmarks import inputs
from benchmarks.cases.training import detector_of, our_step
from benchmarks.measure import interleaved
from benchmarks.table import Row


def rows(quick: bool) -> list[Row]:
    """Seconds of one step of all seeds: 8 of a very small detector and, at full size where there is a GPU
    to be, 25. The reference is one seed's step as many times."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    repeat = 1 if quick else 5
    made = [_row(2 if quick else 8, 16, 8, 8, 20, device, repeat)]
    if device.type == "cuda" and not quick:
        made.append(_row(25, 256, 768, 32, 300, device, repeat))
    return made


def _row(
    seeds: int, hidden: int, width: int, batch: int, frames: int, device: torch.device, repeat: int
) -> Row:
    sets = (f"model.hidden_dim={hidden}", f"train.batch={batch}", f"train.max_frames={frames}")
    recipe = inputs.recipe("qd-detr", *sets)
    manifest = inputs.queries(batch, length=frames, per_recording=1)
    data = inputs.moments(manifest, recipe, training=True, width=width)
    batches = [next(data.epoch(seed, 1)).to(device) for seed in range(seeds)]
    detector = detector_of(recipe, width).to(device)
    weights, alone = Weights(detector, seeds), copy.deepcopy(detector)
    program = Program(alone, Criterion(recipe, alone), "fp32", device)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    step = our_step(detector, recipe, "fp32")

    def together(given: list[Batch]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total, _ = program.losses(weights.tensors(), given)
        value = total.item()  # as the step alone reads its loss, which waits for a GPU
        torch.autograd.backward(total)
        clip_each(weights.parameters(), 0.1)
        optimizer.step()
        return value

    times = interleaved(
        {"together": partial(together, batches), "one": partial(step, batches[0])}, repeat, warm=2
    )
    return Row(
        f"step of {seeds} seeds together, hidden {hidden}, {batch} x {frames} frames",
        times["together"],
        seeds * times["one"],
        note=f"{device.type}; {times['together'] / times['one']:.1f} times one seed's step",
    )
