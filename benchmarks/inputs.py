"""Made-up data of CASTELLA's shape: the lengths of its training recordings, queries and moments.

Numbers are quantiles of the released training annotations; features are noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.data.features import StreamInfo
from amrctl.data.manifest import Manifest, Query
from amrctl.pipeline.answering import Made
from amrctl.recipe import Recipe, load

# every 5 % of the recordings, seconds (the longest quarter is all 300)
LENGTHS = (60, 88, 129, 181, 255, *(299,) * 10, *(300,) * 6)
QUERIES = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5)  # per recording
MOMENTS = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5, 6, 9)  # per query
WIDTHS = (1, 1, 2, 2, 3, 4, 5, 7, 12, 21)  # seconds


def info(side: Any, dim: int, count: int) -> StreamInfo:
    """A stream of noise, one row a second."""
    return StreamInfo(
        name="noise",
        side=side,
        dim=dim,
        count=count,
        dtype="float32",
        window=1.0 if side == "audio" else None,
        hop=1.0 if side == "audio" else None,
        encoder="noise",
        checkpoint=None,
        checkpoint_sha256=None,
        sample_rate=None,
        normalisation=None,
        space=None,
        pooled=None,
        attrs={},
    )


def queries(recordings: int, *, length: int | None = None, per_recording: int | None = None) -> Manifest:
    """`recordings` made-up recordings of CASTELLA's lengths (or all of one) with their queries."""
    rng = np.random.default_rng(0)
    made = []
    for r in range(recordings):
        drawn = round(float(np.interp(rng.random(), np.linspace(0, 1, 21), LENGTHS)))
        seconds = length or drawn
        for q in range(per_recording or int(rng.choice(QUERIES))):
            windows = []
            for _ in range(int(rng.choice(MOMENTS))):
                width = min(int(rng.choice(WIDTHS)), seconds)
                start = int(rng.integers(0, seconds - width + 1))
                windows.append((float(start), float(start + width)))
            made.append(Query(f"r{r}_{q}", "noise", f"r{r}", float(seconds), tuple(sorted(windows))))
    return Manifest(None, tuple(made))


def moments(manifest: Manifest, recipe: Recipe, *, training: bool, width: int = 768) -> Moments:
    """The data set of these queries with features of noise, one stream a side or as the recipe asks."""
    rng = np.random.default_rng(1)
    made = Made()
    for side, ids, rows in (
        ("audio", list(manifest.recordings), [round(s) for s in manifest.recordings.values()]),
        ("text", [q.qid for q in manifest], rng.integers(5, 16, len(manifest)).tolist()),
    ):
        for name in [stream.name for stream in getattr(recipe.features, side)]:
            pieces = [rng.standard_normal((n, width), dtype=np.float32) for n in rows]
            known = info(side, width, len(ids))
            made.add(known if name == "auto" else _named(known, name), ids, pieces)
    return Moments(manifest, made, recipe, training=training)


def _named(known: StreamInfo, name: str) -> StreamInfo:
    return StreamInfo(**{**vars(known), "name": name})


def recipe(name: str = "qd-detr", *sets: str) -> Recipe:
    """A shipped recipe, as `finetune` runs it."""
    return load(name, "finetune", sets)


def first(dataset: Moments, count: int) -> list[Batch]:
    """The first batches of a training epoch, or of an evaluation."""
    found = dataset.epoch(0, 1) if dataset.training else dataset.in_order()
    return [batch for batch, _ in zip(found, range(count), strict=False)]


def without_dropout(module: torch.nn.Module) -> None:
    """Set every dropout rate of a network to 0, ours or the official one."""
    for part in module.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def predicted(manifest: Manifest, count: int = 10) -> list[dict[str, Any]]:
    """Rows of a prediction file: `count` windows a query, some of them right."""
    rng = np.random.default_rng(2)
    rows = []
    for query in manifest:
        start = rng.uniform(0, query.duration * 0.9, count)
        windows = np.column_stack([start, np.minimum(start + rng.uniform(1, 30, count), query.duration)])
        known = np.array((query.windows or ())[:count]).reshape(-1, 2)
        windows[: len(known)] = known + rng.normal(0, 1, known.shape)
        windows = np.sort(np.clip(np.rint(windows), 0, query.duration), axis=1)
        scores = np.sort(rng.random(count))[::-1].round(4)
        rows.append(
            {
                "qid": query.qid,
                "query": query.query,
                "vid": query.vid,
                "pred_relevant_windows": np.column_stack([windows, scores]).tolist(),
            }
        )
    return rows


def gold(manifest: Manifest) -> list[dict[str, Any]]:
    """Rows of the manifest as in a file."""
    return [
        {
            "qid": q.qid,
            "query": q.query,
            "vid": q.vid,
            "duration": q.duration,
            "relevant_windows": [list(w) for w in q.windows or ()],
        }
        for q in manifest
    ]
