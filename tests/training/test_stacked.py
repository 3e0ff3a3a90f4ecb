"""A stack of detectors learns in one step what each learns alone: losses, gradients, norms, ASAM's climb."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from amrctl import registry
from amrctl.data.batch import Batch, Teacher
from amrctl.data.dataset import Moments
from amrctl.losses.dense import dense
from amrctl.losses.matching import match
from amrctl.losses.total import Criterion
from amrctl.model.auxiliary import sigreg
from amrctl.model.detector import Detector, build
from amrctl.model.layers.dropout import Dropout
from amrctl.recipe import Recipe, from_dict
from amrctl.training import loop
from amrctl.training.precision import Resolved, autocast
from amrctl.training.stacked import Program, Weights, clip_each, optimizer_of, stack_batches
from benchmarks import inputs
from tests.small import AUDIO_DIM, TEXT_DIM
from tests.small import batch as small_batch
from tests.test_contract import PARTS, TERMS, recipe_with

HERE = torch.device("cpu")


def detectors(recipe: Recipe, audio: Sequence[int], text: Sequence[int], count: int) -> list[Detector]:
    """With dropout off and nothing left at zero."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        detector = build(recipe, audio, text, training=True).train()
        inputs.without_dropout(detector)
        for parameter in detector.parameters():
            if not parameter.detach().any():
                nn.init.normal_(parameter, std=0.05)
        made.append(detector)
    return made


def stack_of(alone: Sequence[Detector]) -> Weights:
    weights = Weights(alone[0], len(alone))
    for seed, detector in enumerate(alone):
        weights.load(seed, detector)
    return weights


def program_of(recipe: Recipe, detector: Detector, precision: Resolved = "fp32") -> Program:
    network = copy.deepcopy(detector)
    return Program(network, Criterion(recipe, network), precision, HERE)


def small(name: str, *sets: str) -> tuple[Recipe, Moments]:
    size = ("train.batch=5", "train.max_frames=40", "model.hidden_dim=16")
    recipe = inputs.recipe(name, *size, *sets)
    return recipe, inputs.moments(inputs.queries(5), recipe, training=True, width=8)


def drawn_alike(width: int, slices: int, device: torch.device) -> Tensor:
    """SIGReg's directions, not drawn: in a stack every seed draws its own."""
    place = torch.arange(1, width * slices + 1, dtype=torch.float32).view(width, slices)
    return nn.functional.normalize(torch.sin(place.square()), dim=0)


def compare(
    recipe: Recipe,
    alone: Sequence[Detector],
    batches: Sequence[Batch],
    precision: Resolved = "fp32",
    near: float = 1e-5,
) -> None:
    """Losses, terms and gradients of the stack are those of each detector on its own batch."""
    weights, program = stack_of(alone), program_of(recipe, alone[0], precision)
    total, found = program.losses(weights.tensors(), batches)
    total.backward()
    for seed, (detector, batch) in enumerate(zip(alone, batches, strict=True)):
        with autocast(precision, HERE):
            output = detector(batch)
        loss = Criterion(recipe, detector)(loop._float32(output), batch)
        loss.total.backward()
        assert found.total[seed].item() == pytest.approx(loss.total.item(), rel=near)
        assert found.raw.keys() == loss.raw.keys()
        for key, value in loss.raw.items():
            assert found.raw[key][seed].item() == pytest.approx(value.item(), rel=10 * near, abs=near), key
        grads = [p.grad for p in detector.parameters() if p.grad is not None]
        size = torch.cat([grad.flatten() for grad in grads]).norm()
        for key, parameter in detector.named_parameters():
            stack = weights.tensors()[key].grad
            assert (stack is None) == (parameter.grad is None), key
            if stack is not None and parameter.grad is not None:
                assert float((stack[seed] - parameter.grad).abs().max() / size) < near, key


@pytest.mark.parametrize(
    ("name", "sets", "precision", "near"),
    [
        ("qd-detr", (), "fp32", 1e-5),
        ("qd-detr", (), "bf16", 3e-2),
        ("kaist-slot4", ("model.hooks.denoising.sigma=0",), "fp32", 1e-5),
        ("guangzhou-distill", (), "fp32", 1e-5),
        ("cg-detr", (), "fp32", 1e-5),
        ("qam-detr-c", (), "fp32", 1e-5),
        ("yokohama-2", (), "fp32", 1e-5),
    ],
)
def test_a_recipes_loss_and_gradient_are_those_of_each_seed_alone(
    name: str, sets: tuple[str, ...], precision: Resolved, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sigreg, "directions", drawn_alike)
    recipe, data = small(name, *sets)
    epochs = [list(data.epoch(seed, 1)) for seed in range(3)]
    rest = min(epochs[0], key=len)  # lengths, words, moments and even the number of rows differ
    assert len(rest) < 5
    batches = [epochs[1][0], rest, epochs[2][1]]
    if name == "guangzhou-distill":
        for batch in batches:
            teach(batch)
    compare(recipe, detectors(recipe, data.audio_dims, data.text_dims, 3), batches, precision, near)


@pytest.mark.parametrize(("slot", "kind"), [*PARTS, *(("losses", kind) for kind in TERMS)])
def test_every_component_can_be_stacked(slot: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its default options, and with padding that one seed's batch brings to the other's."""
    monkeypatch.setattr(sigreg, "directions", drawn_alike)
    recipe = recipe_with(slot, kind)
    if kind == "denoising":  # its noise is drawn for each seed
        recipe = from_dict(recipe.to_dict(), where=kind, sets=("model.hooks.denoising.sigma=0",))
    alone = detectors(recipe, (AUDIO_DIM,), (TEXT_DIM,), 2)
    batches = [small_batch(seed=1), small_batch((5, 11, 8), (3, 3, 9), seed=2)]
    if kind.startswith("teacher"):
        for batch in batches:
            teach(batch)
    compare(recipe, alone, batches)


def teach(batch: Batch) -> None:
    """Two windows of a teacher for each query, one for the first."""
    assert batch.targets is not None
    drawn = torch.rand(len(batch), 2, 3, generator=torch.Generator().manual_seed(len(batch)))
    mask = torch.ones(len(batch), 2, dtype=torch.bool)
    mask[0, 1] = False
    batch.targets.teacher = Teacher(drawn[..., :2] * 0.5 + 0.25, drawn[..., 2] * mask, mask)


def test_dense_matches_are_the_matches_and_the_rest_does_not_count() -> None:
    _, data = small("qd-detr")
    batch = next(data.epoch(0, 1))
    assert batch.targets is not None
    cost = torch.rand(2, len(batch), 10, batch.targets.mask.shape[1])
    for pairs, wanted in zip(dense(cost, batch.targets.mask), match(cost, batch.targets), strict=True):
        real = pairs.counted(torch.ones(len(pairs.row))).bool()
        ours = {tuple(x) for x in torch.stack((pairs.row, pairs.query, pairs.moment), 1)[real].tolist()}
        theirs = {tuple(x) for x in torch.stack((wanted.row, wanted.query, wanted.moment), 1).tolist()}
        assert ours == theirs
        assert int(real.sum()) == int(pairs.number()) == wanted.number() == len(theirs)
        values = torch.rand(len(batch), 10)
        assert pairs.mean(values[pairs.row, pairs.query]).item() == pytest.approx(
            wanted.mean(values[wanted.row, wanted.query]).item()
        )
        like = torch.zeros(len(batch), 10)
        assert torch.equal(pairs.found(like), wanted.found(like))


def test_each_seed_has_its_own_dropout_at_the_rate_asked_for() -> None:
    layer = Dropout(0.3)
    kept = torch.vmap(lambda x: layer(x), randomness="different")(torch.ones(4, 50, 200))
    share = (kept == 0).float().mean((1, 2))
    assert torch.allclose(share, torch.full((4,), 0.3), atol=0.02)
    both = ((kept[0] == 0) & (kept[1] == 0)).float().mean()
    assert float(both) == pytest.approx(0.09, abs=0.02)


def scaled_gradients() -> tuple[list[nn.Parameter], list[list[nn.Parameter]]]:
    """A stack of three with gradients of very different sizes, and the same three alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (4,), ())
    scale = torch.tensor([0.01, 1.0, 100.0])
    stack = [nn.Parameter(torch.randn(3, *shape, generator=generator)) for shape in shapes]
    for parameter in stack:
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = drawn * scale.view(-1, *[1] * (parameter.dim() - 1))
    alone = [[nn.Parameter(wide.detach()[seed].clone()) for wide in stack] for seed in range(3)]
    for seed, parameters in enumerate(alone):
        for parameter, wide in zip(parameters, stack, strict=True):
            assert wide.grad is not None
            parameter.grad = wide.grad[seed].clone()
    return stack, alone


def test_clipping_is_by_each_seeds_norm() -> None:
    stack, alone = scaled_gradients()
    norms = [nn.utils.clip_grad_norm_(parameters, 0.5) for parameters in alone]
    assert torch.allclose(clip_each(stack, 0.5), torch.stack(norms))
    for seed, parameters in enumerate(alone):
        for parameter, wide in zip(parameters, stack, strict=True):
            assert wide.grad is not None
            assert parameter.grad is not None
            assert torch.allclose(wide.grad[seed], parameter.grad, rtol=1e-6)


def test_asam_climbs_by_each_seeds_norm_and_its_own_dimensions() -> None:
    """Steps of each alone are the truth: a matrix, a bias and a gate, every second step an ASAM step."""
    recipe = inputs.recipe(
        "qd-detr", "train.optimizer={kind: periodic-asam, lr: 0.1, every: 2, rho: 0.5, eps: 0.001}"
    )
    config = recipe.train.optimizer
    stack, alone = scaled_gradients()
    holder = nn.ParameterList(stack)
    together = optimizer_of(recipe, holder)
    apart = [registry.find("optimizer", config.kind).build(config, one) for one in alone]

    def closure(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([(p.sin() * p).sum() for p in parameters]).sum()
        loss.backward()
        return loss.detach()

    for _ in range(5):
        together.step(lambda: closure(together, stack))  # type: ignore[arg-type, return-value]
        for optimizer, parameters in zip(apart, alone, strict=True):
            optimizer.step(lambda o=optimizer, p=parameters: closure(o, p))
    for seed, parameters in enumerate(alone):
        for parameter, wide in zip(parameters, stack, strict=True):
            assert torch.allclose(wide[seed], parameter, atol=1e-6)


def test_batches_are_padded_to_the_longest() -> None:
    _, data = small("qd-detr")
    batches = [next(data.epoch(seed, 1)) for seed in range(4)]
    batches = [batch for batch in batches if len(batch) == 5]
    made = stack_batches(batches)
    assert made.audio_mask.shape[2] == max(batch.audio_mask.shape[1] for batch in batches)
    for i, batch in enumerate(batches):
        frames = batch.audio_mask.shape[1]
        assert torch.equal(made.audio[0][i, :, :frames], batch.audio[0])
        assert torch.equal(made.audio_mask[i].sum(1), batch.audio_mask.sum(1))
        assert not made.audio[0][i, :, frames:].any()
