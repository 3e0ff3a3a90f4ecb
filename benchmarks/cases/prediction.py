"""Evaluation: the forward pass at full length, and all of a test set of CASTELLA's shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.inference.predict import predict
from amrctl.model.detector import Detector
from amrctl.recipe import Recipe
from benchmarks import inputs, official
from benchmarks.cases.training import (
    DTYPES,
    NO_REFERENCE,
    QUICK,
    Size,
    beside,
    detector_of,
    formats,
    joined,
)
from benchmarks.measure import Work, flops, matrix_rate, peak_mb
from benchmarks.official import Official
from benchmarks.table import Row

_TOLERANCE = 1e-5  # of spans in 0..1


def rows(quick: bool, reference: Official | None = None) -> list[Row]:
    """Seconds of one forward pass of 32 recordings of 300 s, and of predicting a whole set."""
    size = QUICK if quick else Size()
    return [*_forward(reference, size), *_set(reference, size)]


def long_batch(size: Size) -> tuple[Detector, Batch]:
    """A batch in which all recordings have full length, and a detector."""
    recipe = inputs.recipe("qd-detr", *size.sets, f"train.eval_batch={size.batch}")
    manifest = inputs.queries(size.batch, length=size.frames, per_recording=1)
    (batch,) = inputs.first(inputs.moments(manifest, recipe, training=False, width=size.width), 1)
    return detector_of(recipe, size.width).eval(), batch


def their_forward(reference: Official, size: Size) -> Work:
    """The official forward pass on that batch."""
    detector, batch = long_batch(size)
    model = size.build(reference, detector)[0].eval()
    return partial(_inference, partial(model, **official.inputs(batch)))


def _forward(reference: Official | None, size: Size) -> list[Row]:
    detector, batch = long_batch(size)
    works: dict[str, Work] = {}
    note = NO_REFERENCE
    if reference is not None:
        model = size.build(reference, detector)[0].eval()
        given = official.inputs(batch)
        with torch.inference_mode():
            spans = detector(batch).spans
            assert spans is not None
            gap = float((spans[-1] - model(**given)["pred_spans"]).abs().max())
        if gap > _TOLERANCE:
            raise AssertionError(f"the spans differ by {gap:.1e} of the recording")
        note = f"spans differ by {gap:.0e}"
    for precision in formats():
        works[precision] = partial(_inference, detector, batch, precision=precision)
    times = beside(their_forward, reference, size, works, size.repeat, size.settle)
    counted = flops(works["fp32"])
    return [
        Row(
            f"evaluation forward, {size.batch} x {size.frames} frames, {precision}",
            times[precision],
            times.get("official"),
            limit=counted / matrix_rate(DTYPES[precision]),
            memory_mb=peak_mb(works[precision]),
            note=joined(note, f"{counted / 1e9:,.0f} GFLOP") if precision == "fp32" else "",
        )
        for precision in formats()
    ]


def _inference(module: Callable[..., Any], *args: Any, precision: str = "fp32") -> Any:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return module(*args)


def whole_set(size: Size, *sets: str) -> tuple[Recipe, Moments]:
    """Queries of CASTELLA's shape."""
    recipe = inputs.recipe("qd-detr", *size.sets, *sets)
    manifest = inputs.queries(size.recordings, length=size.length)
    return recipe, inputs.moments(manifest, recipe, training=False, width=size.width)


def their_set(reference: Official, size: Size) -> Work:
    """The official forward pass on these, in batches cut like its data set's, in the order of the file."""
    _, dataset = whole_set(size, "compat=official")
    detector = detector_of(inputs.recipe("qd-detr", *size.sets), size.width)
    model = size.build(reference, detector)[0].eval()
    ready = [partial(model, **official.inputs(batch)) for batch in dataset.in_order()]
    return lambda: [_inference(forward) for forward in ready]


def _set(reference: Official | None, size: Size) -> list[Row]:
    """From packed features to windows, decoding included; the official forward in file order beside it."""
    recipe, dataset = whole_set(size)
    manifest = dataset.manifest
    detector = detector_of(recipe, size.width).eval()
    works: dict[str, Work] = {}
    for precision in formats():
        dtype = None if precision == "fp32" else torch.bfloat16
        works[precision] = partial(predict, detector, dataset, recipe, precision=dtype)
    times = beside(their_set, reference, size, works, max(size.repeat // 2, 1))
    shared = len(manifest.recordings) / len(manifest)
    return [
        Row(
            f"predict {len(manifest)} queries of CASTELLA's shape, {precision}",
            times[precision],
            times.get("official"),
            limit=flops(works["fp32"]) / matrix_rate(DTYPES[precision]),
            memory_mb=peak_mb(works[precision]),
            note=f"ours with decoding; {1 / shared:.1f} queries a recording share its projection",
        )
        for precision in formats()
    ]
