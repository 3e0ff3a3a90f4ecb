"""Both directions of the BiMamba encoder against recordings that are turned round one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.encoder.bimamba import BiMamba, BiMambaConfig, BiMambaLayer, reorder, reversal
from amrctl.model.types import Dims, Memory

DIMS = Dims(hidden=16, audio=(5,), text=(6,))
LENGTHS = (7, 12, 1)


def memory(size: int = 12, seed: int = 0) -> Memory:
    """Three recordings of 7, 12 and 1 frames with arbitrary values on padding."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(size)[None] < torch.tensor(LENGTHS)[:, None]
    audio = torch.randn(3, size, 16, generator=g)
    text, mark = torch.randn(3, 4, 16, generator=g), torch.randn(3, 16, generator=g)
    return Memory(audio, mask, torch.zeros_like(audio), text, torch.ones(3, 4, dtype=torch.bool), mark, mark)


def layers(model: BiMamba) -> list[BiMambaLayer]:
    return [layer for layer in model.layers if isinstance(layer, BiMambaLayer)]


def encoder(options: dict[str, object] | None = None, official: bool = False) -> BiMamba:
    torch.manual_seed(3)
    built = BiMamba(BiMambaConfig.model_validate(options or {}), replace(DIMS, official=official))
    for layer in layers(built):  # so that the norm is not invisible
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
    return built


def one_by_one(model: BiMamba, given: Memory, residual: bool, whole: bool = False) -> list[Tensor]:
    """Summary and real frames of each recording, reversed with `flip` and merged as the reports say."""
    out = []
    for row, length in enumerate(given.audio.shape[1] if whole else n for n in LENGTHS):
        x = torch.cat((given.summary[row : row + 1], given.audio[row, :length]))[None]
        for layer in layers(model):
            ahead, back = layer.fwd(x), layer.bwd(x.flip(1)).flip(1)
            if layer.merge is None:
                y = ahead + back
            else:
                half = layer.merge.weight.shape[0]
                y = functional.linear(ahead, layer.merge.weight[:, :half], layer.merge.bias)
                y = y + functional.linear(back, layer.merge.weight[:, half:])
            y = x + y if residual else y
            x = functional.layer_norm(y, (16,), layer.norm.weight, layer.norm.bias)
        out.append(x[0])
    return out


@pytest.mark.parametrize(
    ("options", "residual"),
    [
        ({}, False),
        ({"residual": True, "layers": 2, "conv": 2}, True),
        ({"merge": "concat", "layers": 2}, True),
        ({"merge": "concat", "residual": False, "state": 5, "expand": 1}, False),
    ],
)
def test_each_recording_is_scanned_both_ways_within_itself(
    options: dict[str, object], residual: bool
) -> None:
    model, given = encoder(options), memory()
    got = model(given)
    assert torch.equal(got.text, given.text)
    for row, (length, truth) in enumerate(zip(LENGTHS, one_by_one(model, given, residual), strict=True)):
        torch.testing.assert_close(got.summary[row], truth[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.audio[row, :length], truth[1:], rtol=1e-4, atol=1e-5)


def test_official_starts_in_the_padding_and_adds_the_input() -> None:
    model, given = encoder(official=True), memory()
    got = model(given)
    for row, (length, truth) in enumerate(
        zip(LENGTHS, one_by_one(model, given, True, whole=True), strict=True)
    ):
        torch.testing.assert_close(got.audio[row, :length], truth[1 : length + 1], rtol=1e-4, atol=1e-5)
        assert not got.audio[row, length:].any()


def test_padding_gets_no_gradient() -> None:
    model, given = encoder(), memory()
    given.audio.requires_grad_()
    out = model(given)
    weight = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(4))
    (out.audio * weight)[given.audio_mask].sum().backward()
    assert given.audio.grad is not None
    assert not given.audio.grad[~given.audio_mask].any()
    assert given.audio.grad[given.audio_mask].abs().sum(-1).min() > 0


def test_every_frame_sees_both_ends_and_the_summary_ahead_of_it() -> None:
    """The last frame's output depends on the summary (forwards), the summary's on the last frame."""
    model, given = encoder(), memory()
    base = model(given)
    moved = model(replace(given, summary=given.summary + 1))
    assert (moved.audio - base.audio)[1, 11].abs().max() > 1e-4
    audio = given.audio.clone()
    audio[1, 11] += 1
    assert (model(replace(given, audio=audio)).summary - base.summary)[1].abs().max() > 1e-4


def test_reversal_leaves_padding_and_undoes_itself() -> None:
    order = reversal(torch.tensor([3, 5, 1]), 5)
    assert order.view(3, 5).tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5], [10, 11, 12, 13, 14]]
    assert torch.equal(order[order], torch.arange(15))
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reorder(reorder(x, order), order), x)
    assert torch.autograd.gradcheck(lambda y: reorder(y, order), x)


def test_its_weights_are_the_released_ones() -> None:
    model = BiMamba(BiMambaConfig.model_validate({}), replace(DIMS, hidden=256))
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if "bwd" not in k}
    assert shapes == {
        "layers.0.fwd.A_log": (512, 16),
        "layers.0.fwd.D": (512,),
        "layers.0.fwd.in_proj.weight": (1024, 256),
        "layers.0.fwd.conv1d.weight": (512, 1, 4),
        "layers.0.fwd.conv1d.bias": (512,),
        "layers.0.fwd.x_proj.weight": (48, 512),
        "layers.0.fwd.dt_proj.weight": (512, 16),
        "layers.0.fwd.dt_proj.bias": (512,),
        "layers.0.fwd.out_proj.weight": (256, 512),
        "layers.0.norm.weight": (256,),
        "layers.0.norm.bias": (256,),
    }
    assert len(model.state_dict()) == 2 * 9 + 2
