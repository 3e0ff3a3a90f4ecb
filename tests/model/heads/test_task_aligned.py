"""The shared trunk: what each head reads, and how it stands in the place of the others."""

from __future__ import annotations

import pytest
import torch

from amrctl.errors import RecipeError
from amrctl.inference.scores.foreground import ForegroundScore, ForegroundScoreConfig
from amrctl.inference.scores.product import Product, ProductConfig
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.model.heads.task_aligned import TaskAligned, TaskAlignedConfig
from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.recipe import Recipe
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

HEADS = "model.heads=[{kind: task-aligned, iou: %s}, saliency]"
NOTHING = torch.zeros(1, 1, 4)
MEMORY = Memory(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)


def made(*sets: str) -> tuple[Recipe, Detector]:
    torch.manual_seed(0)
    whole = recipe(*sets)
    return whole, build(whole, (AUDIO_DIM,), (TEXT_DIM,), training=True)


def test_all_heads_read_what_the_trunk_makes() -> None:
    torch.manual_seed(0)
    head = TaskAligned(TaskAlignedConfig.model_validate({"layers": 2}), Dims(4, (4,), (4,)))
    decoded, output = Decoded(torch.randn(2, 1, 3, 4), torch.rand(2, 1, 3, 2)), Output()
    head(MEMORY, decoded, output)
    assert output.logits is not None
    assert output.spans is not None
    assert output.quality is not None
    assert (output.logits.shape, output.spans.shape) == ((2, 1, 3, 1), (2, 1, 3, 2))
    w = {name: p.detach().double() for name, p in head.named_parameters()}
    for s in range(2):
        for n in range(3):
            x = decoded.states[s, 0, n].double()
            for layer in ("trunk.0", "trunk.2"):
                x = (w[f"{layer}.weight"] @ x + w[f"{layer}.bias"]).clamp(min=0)
            told = {k: w[f"{k}.weight"] @ x + w[f"{k}.bias"] for k in ("foreground", "span", "iou")}
            start = decoded.references[s, 0, n].double()
            spans = torch.sigmoid(told["span"] + torch.log(start / (1 - start)))
            for got, wanted in (
                (output.logits[s, 0, n], told["foreground"]),
                (output.spans[s, 0, n], spans),
                (output.quality[s, 0, n][None], told["iou"]),
            ):
                torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beside", ["foreground", "span", "quality"])
@pytest.mark.parametrize("heads", ["{}, task-aligned", "task-aligned, {}"])
def test_it_stands_alone(beside: str, heads: str) -> None:
    """Before anything runs: whoever comes last would win, and the other would stay untrained."""
    with pytest.raises(RecipeError, match=f"model.heads: 'task-aligned' takes the place of '{beside}'"):
        made(f"model.heads=[{heads.format(beside)}, saliency]")


def test_without_its_own_it_takes_another_head_for_the_iou() -> None:
    _, detector = made("model.heads=[{kind: task-aligned, iou: false}, quality, saliency]")
    output = detector.train()(batch())
    assert output.quality is not None
    assert "iou" not in dict(detector.get_submodule("heads.task-aligned").named_children())


@pytest.mark.parametrize("loss", ["label: 4", "focal: 4", "varifocal: {weight: 1, cost: 4}"])
@pytest.mark.parametrize("iou", ["true", "false"])
def test_it_trains_with_each_class_loss_and_with_or_without_the_iou_head(loss: str, iou: str) -> None:
    losses = f"losses={{span: 10, giou: 1, saliency: 1, {loss}}}"
    whole, detector = made(HEADS % iou, losses)
    data = batch()
    output = detector.train()(data)
    assert (output.quality is None) == (iou == "false")
    total = Criterion(whole, detector)(output, data)
    assert ("quality-head" in total.raw) == (iou == "true")
    total.total.backward()
    for name, parameter in detector.get_submodule("heads.task-aligned").named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_it_ranks_by_the_class_or_by_the_product() -> None:
    _, detector = made(HEADS % "true")
    data = batch()
    with torch.inference_mode():
        output = detector.eval()(data)
    by_class = ForegroundScore(ForegroundScoreConfig())(output, data)
    product = Product(ProductConfig())(output, data)
    assert torch.equal(by_class, output.logits[-1, ..., 0].sigmoid())
    torch.testing.assert_close(product, by_class * output.quality[-1].sigmoid())
