"""`python -m benchmarks.steps [--recipe NAME ...]`: where the time of a training step goes, per recipe.

Self time of one thread by kind of work, in percent of the step. Anything but matrix products above 15 %
is marked with `!`. Shares hardly change when something else runs on the machine, unlike times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from amrctl.errors import AmrctlError
from amrctl.recipe import load_any, shipped
from benchmarks import inputs
from benchmarks.cases.training import detector_of, our_step

LIMIT = 15.0  # percent
# the first group that has a part of the operation's name; what is left of torch is "elementwise"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "optimiser": ("adamw", "optimizer", "foreach", "linalg_vector_norm"),
    "layer norm": ("layer_norm", "layernorm"),
    "dropout": ("drop", "_added", "random_", "bernoulli"),
    "attention": ("softmax", "scaled_dot_product", "flash_attention", "logsumexp", "_attention", "_weights"),
    "matrix products": (
        *("aten::mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mkldnn", "aten::convolution", "einsum"),
    ),
    "scan": ("scan", "convolution"),  # of a Mamba block
    "activation": ("relu", "gelu", "silu", "sigmoid", "tanh", "softplus"),
    "copies": (
        *("copy_", "::cat", "::stack", "contiguous", "clone", "index", "gather", "scatter", "::to"),
        *("fill_", "zero", "_reorder"),
    ),
    "elementwise": ("_distance",),  # of SIGReg
    "dispatch": (
        *("view", "reshape", "transpose", "expand", "as_strided", "slice", "select", "squeeze", "::t"),
        *("permute", "empty", "detach", "resize", "set_", "alias", "item", "_local_scalar"),
        *("evaluate_function", "profiler"),
    ),
    "python": (),
}


def group(name: str) -> str:
    """Which kind of work an operation of this name is."""
    lower = name.lower()
    found = next((kind for kind, parts in GROUPS.items() if any(part in lower for part in parts)), "")
    return found or ("elementwise" if lower.startswith("aten::") else "python")


def shares(step: Callable[[], Any], times: int = 3) -> dict[str, float]:
    """Kind of work → percent of the self time of one thread, largest first.

    What is between the operations (Python, the queue of the backward pass) counts as `python`.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(times):
            with record_function("step"):
                step()
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = "python" if event.key == "step" else group(event.key)
        found[kind] = found.get(kind, 0.0) + float(event.self_cpu_time_total)
    total = sum(found.values())
    return dict(sorted(((k, 100 * v / total) for k, v in found.items()), key=lambda pair: -pair[1]))


def profile_recipe(name: str, *, batch: int, frames: int, width: int, precision: Any) -> dict[str, float]:
    """`shares` of a recipe's training step, made-up features."""
    recipe = inputs.recipe(name, f"train.batch={batch}", f"train.max_frames={frames}")
    manifest = inputs.queries(batch, length=frames, per_recording=1)
    dataset = inputs.moments(manifest, recipe, training=True, width=width)
    step = our_step(detector_of(recipe, width), recipe, precision)
    (first,) = inputs.first(dataset, 1)
    step(first)
    return shares(lambda: step(first))


def line(name: str, row: Mapping[str, float], wide: int) -> str:
    """A recipe and its percentage of every kind of work, marked where it is too much."""
    cells = []
    for kind in GROUPS:
        value = row.get(kind, 0.0)
        mark = "!" if value > LIMIT and kind != "matrix products" else " "
        cells.append(f"{value:.1f} %{mark}".rjust(len(kind) + 2))
    return f"{name:{wide}}" + "  ".join(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 when a recipe could not be run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.steps", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--recipe", nargs="+", help="names (default: every shipped recipe of a detector)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--width", type=int, default=768, help="of the features")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    detectors = [name for name in shipped() if load_any(name, "finetune").task == "moments"]
    names, failed = chosen.recipe or detectors, 0
    wide = max(map(len, names)) + 2
    print(" " * wide + "  ".join(kind.rjust(len(kind) + 2) for kind in GROUPS))
    for name in names:
        try:
            row = profile_recipe(
                name, batch=chosen.batch, frames=chosen.frames, width=chosen.width, precision=chosen.precision
            )
        except AmrctlError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
        else:
            print(line(name, row, wide), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
