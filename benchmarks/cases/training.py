"""Training steps of recipe qd-detr beside the official code: full length, and CASTELLA's lengths."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.data.manifest import Manifest
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.processor import cpu_has_bf16
from amrctl.recipe import Recipe
from amrctl.training.loop import _float32
from amrctl.training.memory import keep_freed
from amrctl.training.precision import Resolved, autocast
from benchmarks import inputs, official
from benchmarks.apart import apart
from benchmarks.measure import Work, flops, interleaved, matrix_rate, peak_mb
from benchmarks.official import Official
from benchmarks.table import Row

_TOLERANCE = 1e-4  # of the losses, dropout off
_HERE = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_REFERENCE = "no --official: nothing beside it"


def detector_of(recipe: Recipe, width: int) -> Detector:
    """A detector with fresh weights of seed 0, ready to train."""
    torch.manual_seed(0)
    streams = recipe.features
    made = build(recipe, (width,) * len(streams.audio), (width,) * len(streams.text), training=True)
    made.train()
    return made


def our_step(detector: Detector, recipe: Recipe, precision: Resolved) -> Callable[[Batch], Any]:
    """What `training.loop` does with a batch."""
    criterion, clip = Criterion(recipe, detector), _clip(recipe)
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **_of_optimizer(recipe), fused=True)

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, _HERE):
            output = detector(batch)
        loss = criterion(_float32(output), batch).total
        value = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return value

    return step


def _of_optimizer(recipe: Recipe) -> dict[str, Any]:
    given = recipe.to_dict()["train"]["optimizer"]
    return {"lr": given["lr"], "weight_decay": given["weight_decay"]}


def _clip(recipe: Recipe) -> float:
    return float(recipe.to_dict()["train"]["clip"])


def their_step(model: nn.Module, criterion: nn.Module, recipe: Recipe) -> Callable[[Any, Any], Any]:
    """What the official loop does with a batch in memory, at the recipe's rate and clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), **_of_optimizer(recipe))
    clip = _clip(recipe)
    model.train()
    criterion.train()

    def step(given: Any, wanted: Any) -> float:
        loss = official.loss(criterion, model(**given), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return float(loss.detach())

    return step


@dataclass(frozen=True)
class Size:
    """How large a case is; the quick one only shows that it runs."""

    width: int = 768
    frames: int = 300
    batch: int = 32
    batches: int = 68  # of an epoch
    taken: int = 8  # of these
    recordings: int = 80  # to predict
    repeat: int = 5
    settle: int = 8  # steps before the first that counts: memory that is new to the machine makes them slow
    length: int | None = None  # of all recordings, seconds; None: CASTELLA's lengths

    @property
    def sets(self) -> tuple[str, ...]:
        """`--set` items of a recipe."""
        return f"train.batch={self.batch}", f"train.max_frames={self.frames}"

    def build(self, reference: Official, detector: Detector) -> tuple[nn.Module, nn.Module]:
        """The official network and criterion of this size."""
        widths = {"a_feat_dim": self.width, "t_feat_dim": self.width}
        return reference.build(detector, **widths)


QUICK = Size(width=8, frames=20, batch=4, batches=4, taken=2, recordings=20, repeat=1, settle=1, length=20)


def rows(quick: bool, reference: Official | None = None) -> list[Row]:
    """Seconds of one step of 32 queries (CASTELLA's lengths: per 32 queries, batch making included)."""
    keep_freed()  # as the command does
    size = QUICK if quick else Size()
    made = [*_full(reference, size), *_mixed(reference, size)]
    if reference is None:
        made = [replace(row, note=joined(row.note, NO_REFERENCE)) for row in made]
    return made


def beside(
    make: Callable[[Official, Size], Work],
    reference: Official | None,
    size: Size,
    works: Mapping[str, Work],
    repeat: int,
    warm: int = 1,
) -> dict[str, float]:
    """Median seconds of `works` and, as `official` in a process of its own, of what `make` makes."""
    if reference is None:
        return interleaved(works, repeat, warm=warm)
    told = {"clone": str(reference.source.parent), "size": asdict(size)}
    with apart(official_work, module=make.__module__, name=make.__qualname__, **told) as theirs:
        return interleaved({"official": theirs, **works}, repeat, warm=warm)


def official_work(module: str, name: str, clone: str, size: Mapping[str, Any]) -> Work:
    """What a function of a case makes of the official code and a size, both told in plain values."""
    make: Callable[[Official, Size], Work] = getattr(importlib.import_module(module), name)
    return make(Official(Path(clone)), Size(**size))


def formats() -> tuple[Resolved, ...]:
    """Number formats that this processor has."""
    return ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)


def loss_gap(reference: Official, size: Size, manifest: Manifest) -> float:
    """Relative distance of the two losses on one batch (the released code's targets) with equal
    weights and dropout off."""
    recipe = inputs.recipe("qd-detr", "compat=official", *size.sets)
    (batch,) = inputs.first(inputs.moments(manifest, recipe, training=True, width=size.width), 1)
    detector = detector_of(recipe, size.width)
    model, criterion = size.build(reference, detector)
    inputs.without_dropout(detector)
    inputs.without_dropout(model)
    with torch.no_grad():
        ours = float(Criterion(recipe, detector)(detector(batch), batch).total)
        theirs = float(official.loss(criterion, model(**official.inputs(batch)), official.targets(batch)))
    return abs(ours - theirs) / abs(theirs)


def long_batch(size: Size) -> tuple[Recipe, Manifest, Batch]:
    """A batch in which all recordings have full length."""
    recipe = inputs.recipe("qd-detr", *size.sets)
    manifest = inputs.queries(size.batch, length=size.frames, per_recording=1)
    (batch,) = inputs.first(inputs.moments(manifest, recipe, training=True, width=size.width), 1)
    return recipe, manifest, batch


def their_long_step(reference: Official, size: Size) -> Work:
    """The official step on that batch."""
    recipe, _, batch = long_batch(size)
    step = their_step(*size.build(reference, detector_of(recipe, size.width)), recipe)
    return partial(step, official.inputs(batch), official.targets(batch))


def _full(reference: Official | None, size: Size) -> list[Row]:
    recipe, manifest, batch = long_batch(size)
    note = ""
    works: dict[str, Work] = {}
    if reference is not None:
        gap = loss_gap(reference, size, manifest)
        if gap > _TOLERANCE:
            raise AssertionError(f"the losses differ by {gap:.1e} of the official one's value")
        note = f"losses differ by {gap:.0e}"
    for precision in formats():
        works[precision] = partial(our_step(detector_of(recipe, size.width), recipe, precision), batch)
    times = beside(their_long_step, reference, size, works, size.repeat, size.settle)
    counted = flops(works["fp32"])
    return [
        Row(
            f"training step, {size.batch} x {size.frames} frames, {precision}",
            times[precision],
            times.get("official"),
            limit=counted / matrix_rate(DTYPES[precision]),
            memory_mb=peak_mb(works[precision]),
            note=joined(note if precision == "fp32" else "", f"{counted / 1e9:,.0f} GFLOP"),
        )
        for precision in formats()
    ]


def mixed_lengths(size: Size, *sets: str) -> Moments:
    """As many queries as CASTELLA's training split has, about recordings of its lengths."""
    recipe = inputs.recipe("qd-detr", *size.sets, *sets)
    count = size.batches * size.batch
    manifest = Manifest(None, inputs.queries(count, length=size.length).queries[:count])
    return inputs.moments(manifest, recipe, training=True, width=size.width)


def their_mixed_steps(reference: Official, size: Size) -> Work:
    """The official steps on some of their batches, which are cut at random and so as long as the longest."""
    dataset = mixed_lengths(size, "train.buckets=false")
    step = their_step(*size.build(reference, detector_of(dataset.recipe, size.width)), dataset.recipe)
    some = islice(dataset.epoch(0, 1), size.taken)
    ready = [(official.inputs(b), official.targets(b)) for b in some]
    return lambda: [step(given, wanted) for given, wanted in ready]


def _mixed(reference: Official | None, size: Size) -> list[Row]:
    """Queries in the batches of each: ours by length, the official ones at random."""
    dataset = mixed_lengths(size)
    by_length = sorted(dataset.epoch(0, 1), key=lambda batch: batch.audio_mask.numel())
    every = len(by_length) // size.taken
    some = by_length[every // 2 :: every][: size.taken]  # as many short and long ones as there are
    works: dict[str, Work] = {"making": partial(_made, dataset)}
    for precision in formats():
        step = our_step(detector_of(dataset.recipe, size.width), dataset.recipe, precision)
        works[precision] = partial(_each, step, some)
    taken = beside(their_mixed_steps, reference, size, works, max(size.repeat // 2, 1))
    making = taken.pop("making") / len(by_length)
    official_step = taken["official"] / size.taken if "official" in taken else None
    counted = flops(works["fp32"]) / len(some)
    return [
        Row(
            f"training step, CASTELLA's lengths, {precision}",
            taken[precision] / len(some) + making,
            official_step,
            limit=counted / matrix_rate(DTYPES[precision]),
            note=f"{1000 * making:.0f} ms of it to make the batch; the official ones are ready made",
        )
        for precision in formats()
    ]


def _made(dataset: Moments) -> None:
    for _ in dataset.epoch(0, 1):
        pass


def _each(step: Callable[[Batch], Any], batches: Sequence[Batch]) -> None:
    for batch in batches:
        step(batch)


def joined(*notes: str) -> str:
    """The notes that are not empty, in one."""
    return "; ".join(note for note in notes if note)
