"""Reference spans from the training moments: the grid, and the socket through which a stage hands it over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amrctl import recipe as recipes
from amrctl.data.manifest import read_manifest
from amrctl.errors import RecipeError
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.decoder.grid import grid_spans
from amrctl.model.detector import Detector, build
from amrctl.progress import Reporter
from amrctl.training import run
from tests.small import AUDIO_DIM, TEXT_DIM, recipe
from tests.training.tiny import Tiny, make

GRID = ("model.decoder.queries=6", "model.decoder.widths=[15, 50, 85]")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def test_ten_places_with_three_widths_each() -> None:
    widths = np.arange(101) / 100
    spans = grid_spans(widths, [15, 50, 85], 30)
    assert spans.shape == (30, 2)
    for i in range(10):
        for j, width in enumerate((0.15, 0.5, 0.85)):
            assert spans[3 * i + j].tolist() == pytest.approx([(i + 0.5) / 10, width], abs=1e-6)


def test_queries_that_do_not_fill_the_grid_are_refused() -> None:
    wrong = recipe("model.decoder.queries=10", "model.decoder.widths=[15, 50, 85]")
    with pytest.raises(RecipeError, match=r"model\.decoder\.widths: 10 queries are not a multiple of 3"):
        build(wrong, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    for value in ("[]", "[-1]", "[101]", "half"):
        with pytest.raises(RecipeError, match=r"model\.decoder\.widths"):
            recipe(f"model.decoder.widths={value}")


def references(detector: Detector) -> Tensor:
    return detector.get_parameter("decoder.query_embed.weight").detach().sigmoid()


def start(tiny: Tiny, train: Path, init: Path | None, *sets: str) -> tuple[Detector, list[str]]:
    """The detector before its first step, and what was told."""
    told: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            told.append(text)

    request = run.Request(
        recipe=recipes.load(str(tiny.recipe), "finetune", sets),
        train=(train,),
        val=(tiny.val,),
        features=tiny.features,
        init=init,
        device="cpu",
    )
    return run.assemble(run.load(request, run.fingerprint(request), Notes()), 5), told


def wanted(path: Path) -> Tensor:
    """The grid of a manifest, straight from its windows."""
    widths = [(e - s) / q.duration for q in read_manifest(path) for s, e in q.windows or ()]
    shares = np.percentile(widths, [15, 50, 85])
    return torch.tensor([[c, w] for c in (0.25, 0.75) for w in shares], dtype=torch.float32)


def test_a_stage_starts_from_its_own_moments_with_and_without_a_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    first, told = start(tiny, tiny.train, None, *GRID)
    torch.testing.assert_close(references(first), wanted(tiny.train))
    assert told == []
    other = tmp_path / "other.jsonl"  # other moments
    lines = [line for line in tiny.val.read_text().splitlines() if line]
    other.write_text("\n".join(lines[:3]) + "\n")
    assert not torch.allclose(wanted(other), wanted(tiny.train))
    saved = tmp_path / "c.safetensors"
    stream = {"name": "noise", "dim": 6, "encoder": "noise", "hop": 1.0, "attrs": {}}
    with torch.no_grad():
        first.get_parameter("decoder.query_embed.weight").normal_()  # trained
    made = recipes.load(str(tiny.recipe), "finetune", GRID)
    checkpoint.write(saved, Checkpoint(first.state_dict(), made, {"audio": [stream], "text": [stream]}))
    second, told = start(tiny, other, saved, *GRID)
    torch.testing.assert_close(references(second), wanted(other))
    assert told == [
        "decoder.query_embed.weight: re-initialised from the training moments, not taken from " + str(saved)
    ]
    rest = {k: v for k, v in second.state_dict().items() if k != "decoder.query_embed.weight"}
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in rest.items())
    # also from a checkpoint with fewer queries: nothing else counts them
    fewer = GRID[1].replace("15, 50, 85", "20, 60")
    third, _ = start(tiny, other, saved, "model.decoder.queries=4", fewer)
    assert references(third).shape == (4, 2)
    plain, told = start(tiny, other, saved, "model.decoder.queries=6")
    assert torch.equal(references(plain), references(first))
    assert told == []


def test_prediction_keeps_what_was_trained(tiny: Tiny) -> None:
    detector, _ = start(tiny, tiny.train, None, *GRID)
    with torch.no_grad():
        detector.get_parameter("decoder.query_embed.weight").add_(0.5)
    stream = {"name": "noise", "dim": 6, "encoder": "noise", "hop": 1.0, "attrs": {}}
    made = recipes.load(str(tiny.recipe), "finetune", GRID)
    kept = Checkpoint(detector.state_dict(), made, {"audio": [stream], "text": [stream]})
    assert torch.equal(references(checkpoint.restore(kept)), references(detector))
