"""Swish with a learned beta, and the recipe key that puts it everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amrctl.errors import RecipeError
from amrctl.model.detector import Detector, build
from amrctl.model.layers.activation import Swish
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe


def test_it_is_its_formula_with_a_gradient_in_beta() -> None:
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    made = Swish().double()
    torch.testing.assert_close(made(x), x / (1 + torch.exp(-x)))
    with torch.no_grad():
        made.beta.fill_(2.5)
    torch.testing.assert_close(made(x), x / (1 + torch.exp(-2.5 * x)))
    assert torch.autograd.gradcheck(lambda v, b: v * torch.sigmoid(b * v), (x, made.beta))
    (grad,) = torch.autograd.grad(made(x).sum(), made.beta)
    s = torch.sigmoid(2.5 * x)
    torch.testing.assert_close(grad, (x**2 * s * (1 - s)).sum())
    assert Swish()(torch.randn(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def made(*sets: str) -> Detector:
    torch.manual_seed(0)
    return build(recipe(*sets), (AUDIO_DIM,), (TEXT_DIM,), training=True)


def test_every_relu_and_prelu_becomes_one_of_its_own() -> None:
    heads = "model.heads=[foreground, span, saliency, boundary, quality]"
    plain, swished = made(heads), made(heads, "model.activation=swish")

    def places(detector: Detector, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
        return {name: part for name, part in detector.named_modules() if isinstance(part, kinds)}

    before, after = places(plain, nn.ReLU, nn.PReLU), places(swished, Swish)
    assert before.keys() == after.keys()
    assert not places(swished, nn.ReLU, nn.PReLU)
    # two feed-forward halves a stack, the input blocks, the perceptrons of decoder and heads
    assert {name.split(".")[0] for name in after} == {"tokens", "fusion", "encoder", "decoder", "heads"}
    assert len({id(part.beta) for part in after.values()}) == len(after) >= 15
    # nothing else is drawn anew or renamed
    betas = {f"{name}.beta" for name in after}
    slopes = {f"{name}.weight" for name, part in before.items() if isinstance(part, nn.PReLU)}
    a, b = plain.state_dict(), swished.state_dict()
    assert set(a) - set(b) == slopes
    assert set(b) - set(a) == betas
    assert all(torch.equal(a[name], b[name]) for name in set(a) & set(b))


def test_no_function_beside_the_modules_cuts_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object, **kwargs: object) -> None:
        raise AssertionError("a ReLU that is no module")

    for name in ("relu", "prelu"):
        monkeypatch.setattr(torch.nn.functional, name, gone)
    made("model.activation=swish")(batch())
    with pytest.raises(AssertionError, match="no module"):
        made()(batch())


def test_another_activation_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model\.activation"):
        recipe("model.activation=tanh")
