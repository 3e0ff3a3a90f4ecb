"""`curves.png`: the loss terms and the validation metrics of a run, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amrctl import provenance


def draw(path: Path, log: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the lines of `log.jsonl` (see `loop`) into a PNG of two panels, 1400 x 550 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in log]
    mark = "o" if len(log) < 30 else ""

    names = list(dict.fromkeys(name for entry in log for name in entry["terms"]))
    positive = all(entry["loss"] > 0 for entry in log)
    left.plot(epochs, [entry["loss"] for entry in log], "k", lw=2, marker=mark, ms=3, label="total, weighted")
    for i, name in enumerate(names):
        values = [entry["terms"].get(name, float("nan")) for entry in log]
        positive = positive and all(value > 0 for value in values)
        dash = "-" if i < 10 else "--"
        left.plot(epochs, values, color=f"C{i % 10}", ls=dash, lw=1, marker=mark, ms=2, label=name)
    left.set(xlabel="epoch", ylabel="training loss, terms unweighted", title="loss")
    if positive:
        left.set_yscale("log")

    validated = [entry for entry in log if entry["val"]]
    sets = list(dict.fromkeys(name for entry in validated for name in entry["val"]))
    for dash, where in zip(("-", "--", ":", "-.") * len(sets), sets, strict=False):
        metrics = list(dict.fromkeys(name for entry in validated for name in entry["val"][where]))
        for i, name in enumerate(metrics):
            right.plot(
                [entry["epoch"] for entry in validated],
                [entry["val"][where][name] for entry in validated],
                color=f"C{i % 10}",
                ls=dash,
                marker=mark,
                ms=3,
                label=name if len(sets) == 1 else f"{name} ({where})",
            )
    right.set(xlabel="epoch", ylabel="percent", title="validation")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, ncols=1 if len(axes.lines) < 12 else 2)
    figure.suptitle(title)
    with provenance.writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
