"""The shared bricks: dropout, attention, positions, span arithmetic, small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from amrctl import spans as arrays
from amrctl.data.tef import tef_2d
from amrctl.errors import RecipeError
from amrctl.model.decoder.conditional import ConditionalLayer
from amrctl.model.layers import dropped_attention
from amrctl.model.layers import spans as tensors
from amrctl.model.layers.activation import PReLU
from amrctl.model.layers.attention import MultiheadAttention, attend, join_heads, key_mask, split_heads
from amrctl.model.layers.dropout import Draws, Dropout, DropPath, _masked, drop, dropped
from amrctl.model.layers.dropped_branch import add_dropped, prelu_dropped
from amrctl.model.layers.encoder_layer import EncoderLayer
from amrctl.model.layers.feedforward import MLP, Feedforward, input_blocks, xavier_
from amrctl.model.layers.positions import frame_positions, span_positions
from amrctl.model.tokens.projection import tef_columns

# --- dropout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / 65536])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    n = 1_000_003  # not a multiple of the four that share a draw
    out = drop(torch.ones(n), p, True)
    rate = round(p * 65536) / 65536
    gone = float((out == 0).double().mean())
    assert abs(gone - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    kept = out[out != 0]
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert float(out.double().mean()) == pytest.approx(1.0, abs=5 * math.sqrt(rate / (1 - rate) / n))


def test_drop_path_drops_or_scales_whole_rows() -> None:
    torch.manual_seed(0)
    n, p = 20_000, 0.2
    x = torch.ones(n, 2, 3, dtype=torch.float64, requires_grad=True)
    made = DropPath(p)
    out = made(x)
    rows = out.detach()[:, 0, 0]
    assert torch.equal(out, rows[:, None, None].expand_as(out))
    kept = rows != 0
    torch.testing.assert_close(rows[kept], torch.full_like(rows[kept], 1 / (1 - p)))
    assert abs(float((~kept).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out)  # the same rows, the same scale
    assert torch.equal(made.eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


def test_layers_take_one_of_both_for_their_branches() -> None:
    made = EncoderLayer(16, 2, 24, 0.3, drop_path=0.4), EncoderLayer(16, 2, 24, 0.3)
    assert [type(layer.dropout) for layer in made] == [DropPath, Dropout]
    assert [layer.dropout.p for layer in made] == [0.4, 0.3]
    assert all(layer.feedforward.dropout.p == 0.3 for layer in made)


def test_dropout_masks_are_independent() -> None:
    """Within a draw's four elements, across neighbours and across calls, and in every position."""
    torch.manual_seed(1)
    n = 400_000
    first, second = dropped(torch.Size((n,)), 0.5).double(), dropped(torch.Size((n,)), 0.5).double()
    bound = 5 / math.sqrt(n)
    for lag in (1, 2, 3, 4, 5, 64):
        assert abs(float(((first[lag:] - 0.5) * (first[:-lag] - 0.5)).mean()) * 4) < bound
    assert abs(float(((first - 0.5) * (second - 0.5)).mean()) * 4) < bound
    quarters = first.view(-1, 4).mean(0)
    assert float((quarters - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(n / 4)


def test_dropout_has_the_gradient_of_its_own_mask() -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    out = drop(x, 0.25, True)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    scale = 1 / 0.75
    kept = out != 0
    assert torch.equal(out.detach(), torch.where(kept, x.detach() * scale, 0.0))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(kept, weight * scale, torch.zeros(())))
    assert 0 < int(kept.sum()) < 35


def test_dropout_is_the_identity_when_it_should_be_and_repeats_with_its_seed() -> None:
    x = torch.randn(3, 4)
    module = Dropout(0.5)
    assert module.eval()(x) is x
    assert drop(x, 0.0, True) is x
    torch.manual_seed(3)
    first = module.train()(x)
    torch.manual_seed(3)
    assert torch.equal(first, module(x))
    assert drop(x[:, ::2], 0.5, True).shape == (3, 2)  # strided
    assert drop(x[:0], 0.5, True).shape == (0, 4)


def test_dropout_of_bfloat16_is_that_of_float32_rounded() -> None:
    x = torch.randn(3, 500).bfloat16()
    torch.manual_seed(4)
    wide = drop(x.float(), 0.3, True)
    torch.manual_seed(4)
    assert torch.equal(drop(x, 0.3, True), wide.bfloat16())


@pytest.mark.parametrize("shape", [(1,), (255,), (3, 256), (2, 5, 77), (3, 200, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropped_prelu_is_dropout_of_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, p: float
) -> None:
    """Output and both gradients, with the elements that `drop` takes at the same seed."""
    torch.manual_seed(0)
    ours, theirs = PReLU(), nn.PReLU(dtype=torch.float64)
    if dtype == torch.float64:
        ours = ours.double()
    x = torch.randn(shape).to(dtype)
    x.view(-1)[0] = 0.0
    weight = torch.randn(shape).to(dtype)
    mine, other = x.clone().requires_grad_(), x.double().requires_grad_()
    torch.manual_seed(5)
    out = prelu_dropped(mine, ours, Dropout(p))
    torch.manual_seed(5)
    wanted = drop(theirs(other), p, True)
    (out * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    assert out.dtype == dtype
    rtol, atol = (1e-2, 1e-2) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    for found, true in ((out, wanted), (mine.grad, other.grad), (ours.weight.grad, theirs.weight.grad)):
        assert found is not None
        assert true is not None
        torch.testing.assert_close(found.double(), true, rtol=rtol, atol=atol)


def test_prelu_without_dropout_is_that_of_torch() -> None:
    x, prelu = torch.randn(4, 7), PReLU()
    wanted = nn.functional.prelu(x, prelu.weight)
    assert torch.equal(prelu_dropped(x, prelu, Dropout(0.9).eval()), wanted)
    with torch.no_grad():
        assert torch.equal(prelu_dropped(x, prelu, Dropout(0.0)), wanted)
    assert prelu_dropped(x[:0], prelu, Dropout(0.5)).shape == (0, 7)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16,) * 2,
        (torch.float64,) * 2,
    ],
)
@pytest.mark.parametrize("shape", [(1,), (2, 5, 77), (3, 200, 256)])
def test_an_added_branch_is_dropout_then_a_sum(
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Output and both gradients, with the elements that `drop` takes at the same seed, rounded once."""
    torch.manual_seed(0)
    x, branch, weight = (torch.randn(shape).to(dtype) for dtype in (*dtypes, torch.promote_types(*dtypes)))
    mine = [each.clone().requires_grad_() for each in (x, branch)]
    other = [each.double().requires_grad_() for each in (x, branch)]
    torch.manual_seed(5)
    out = add_dropped(mine[0], mine[1], Dropout(0.3))
    torch.manual_seed(5)
    wanted = other[0] + drop(other[1], 0.3, True)
    (out * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    assert out.dtype == weight.dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3}
    for found, true in ((out, wanted), *((a.grad, b.grad) for a, b in zip(mine, other, strict=True))):
        assert found is not None
        assert true is not None
        close = tolerance[found.dtype]
        torch.testing.assert_close(found.double(), true, rtol=close, atol=close)


def test_a_branch_is_added_plainly_where_nothing_drops() -> None:
    x, branch = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(add_dropped(x, branch, Dropout(0.5).eval()), x + branch)
    assert torch.equal(add_dropped(x, branch, Dropout(0.0)), x + branch)
    torch.manual_seed(0)
    added = add_dropped(x, branch, DropPath(0.5))
    torch.manual_seed(0)
    assert torch.equal(added, x + DropPath(0.5)(branch))
    assert add_dropped(x[:, :1], branch, Dropout(0.5)).shape == branch.shape  # one row for all


def test_prelu_goes_through_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = PReLU()(nn.Linear(3, 4)(torch.randn(2, 3)))
    assert out.dtype == torch.bfloat16
    out.sum().backward()


# --- attention ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 40, 33), (2, 4, 100, 128)])
@pytest.mark.parametrize("masked", ["no", "keys", "all"])
def test_attention_weights_are_softmax_then_dropout(
    shape: tuple[int, int, int, int], dtype: torch.dtype, masked: str
) -> None:
    """The same elements go as with `drop` after the library's softmax, and the gradient is that of both."""
    torch.manual_seed(0)
    batch, heads, queries, keys = shape
    spread = 2 if dtype == torch.bfloat16 else 20  # of the scores; large ones are coarse in bfloat16
    query, key = torch.randn(batch, heads, queries, 4), spread * torch.randn(batch, heads, keys, 4)
    value = torch.eye(keys).expand(batch, heads, keys, keys)
    seen = torch.rand(batch, 1, 1 if masked == "keys" else queries, keys) < 0.6
    seen[..., -1] = True
    mask = None if masked == "no" else seen
    weight = torch.randn(shape)
    truth: list[Tensor] = []
    found: list[Tensor] = []
    for results, kind in ((truth, torch.float64), (found, dtype)):
        q, k = (x.to(dtype).to(kind).detach().requires_grad_() for x in (query, key))
        torch.manual_seed(1)
        run = slow if results is truth else attend
        out = run(q, k, value.to(kind), mask, 0.3, True)
        (out * weight).sum().backward()
        results += [out, *(x.grad for x in (q, k) if x.grad is not None)]
    assert len(found) == 3
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
        if dtype != torch.bfloat16:
            assert torch.equal(found[0] < 1e-30, truth[0] < 1e-30)  # float64 knows smaller ones


@pytest.mark.parametrize("heads_in_a_piece", [1, 3])
def test_attention_by_pieces_of_heads(heads_in_a_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece draws for itself; weights, keys that may be seen and gradients are those of its heads."""
    batch, heads, queries, keys, p = 4, 2, 30, 40, 0.4
    monkeypatch.setattr(dropped_attention, "_PIECE", heads_in_a_piece * queries * keys + 7)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(batch, heads, t, 8).double().requires_grad_() for t in (queries, keys, keys)
    )
    seen = torch.rand(batch, 1, 1, keys) < 0.7
    weight = torch.randn(batch, heads, queries, 8).double()
    torch.manual_seed(1)
    found = attend(query, key, value, seen, p, True)
    of_found = torch.autograd.grad((found * weight).sum(), (query, key, value))
    torch.manual_seed(1)
    draws = Draws.new(p)
    scores = (query @ key.mT / math.sqrt(8)).masked_fill(~seen, -math.inf)
    softmax = scores.softmax(-1).flatten(0, 1)
    left = [
        dropped_like(part, draws.part(number)) * part
        for number, part in enumerate(softmax.split(heads_in_a_piece))
    ]
    wanted = torch.cat(left).unflatten(0, (batch, heads)) @ value
    of_wanted = torch.autograd.grad((wanted * weight).sum(), (query, key, value))
    for one, other in zip((found, *of_found), (wanted, *of_wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def dropped_like(x: Tensor, draws: Draws) -> Tensor:
    """What dropout multiplies `x` by."""
    return _masked(torch.ones_like(x), draws)


def test_attention_of_an_empty_batch() -> None:
    """As when no recording of a batch has a negative pair."""
    x = torch.empty(0, 2, 5, 4, requires_grad=True)
    seen = torch.ones(0, 1, 1, 5, dtype=torch.bool)
    out = attend(x, x, x, seen, 0.1, True)
    assert out.shape == (0, 2, 5, 4)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.shape == x.shape


def test_attention_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped_attention, "_PIECE", 5_000)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            x = torch.randn(5, 4, 60, 8, requires_grad=True)
            out = attend(x, x, x, None, 0.3, True)
            (grad,) = torch.autograd.grad(out.square().sum(), x)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        results.append((out, grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def slow(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, training: bool
) -> Tensor:
    """Attention with one operation after the other."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return drop(scores.softmax(-1), dropout, training) @ value


def test_attention_weights_keep_a_nan() -> None:
    """A training that diverges must be seen to."""
    query = torch.ones(1, 1, 2, 4)
    query[0, 0, 0, 0] = math.nan
    key = torch.randn(1, 1, 50, 4)
    out = attend(query, key, torch.ones(1, 1, 50, 1), None, 0.01, True)
    assert bool(out[0, 0, 0].isnan())
    assert not bool(out[0, 0, 1].isnan())


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_that_of_torch(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(24, 3, 0.0), nn.MultiheadAttention(24, 3, 0.0, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    ours.train(training)
    theirs.train(training)
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    real = torch.arange(7)[None] < torch.tensor([[7], [4]])
    wanted, _ = theirs(query, key, value, key_padding_mask=~real)
    torch.testing.assert_close(ours(query, key, value, key_mask(real)), wanted, rtol=1e-5, atol=1e-6)
    wanted, _ = theirs(query, query, query)
    torch.testing.assert_close(ours(query, query, query, None), wanted, rtol=1e-5, atol=1e-6)


def test_attention_by_hand_and_its_mask_forms() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 5)
    real = torch.rand(2, 1, 4, 6) > 0.3
    real[..., 0] = True
    scores = (q[..., None, :] * k[..., None, :, :]).sum(-1) / math.sqrt(8)
    weights = scores.masked_fill(~real, -math.inf).softmax(-1)
    wanted = (weights[..., None] * v[..., None, :, :]).sum(-2)
    bias = torch.zeros(real.shape).masked_fill(~real, -math.inf)
    for mask in (real, bias):
        torch.testing.assert_close(attend(q, k, v, mask, 0.0, False), wanted)
        # the path that draws dropout masks, at a rate below its resolution
        torch.testing.assert_close(attend(q, k, v, mask, 1e-9, True), wanted)


def test_attention_drops_probabilities() -> None:
    """Inverted dropout of the probabilities: right on average, and zero in whole entries."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 3, 4)
    v = torch.eye(3)[None, None]  # the output shows the probabilities
    plain = attend(q, k, v, None, 0.0, True)
    many = attend(
        q.expand(20_000, 1, 1, 4), k.expand(20_000, 1, 3, 4), v.expand(20_000, 1, 3, 3), None, 0.5, True
    )
    torch.testing.assert_close(many.mean(0, keepdim=True), plain, rtol=0, atol=0.03)
    dropped_share = (many == 0).float().mean((0, 1, 2))
    assert ((dropped_share - 0.5).abs() < 0.02).all()
    kept = many[..., 0][many[..., 0] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 2 * float(plain[0, 0, 0, 0])))


def test_heads_split_and_join() -> None:
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])
    assert torch.equal(join_heads(split_heads(x, 3)), x)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="width 10 is not a multiple of 3 heads"):
        MultiheadAttention(10, 3, 0.0)
    with pytest.raises(RecipeError, match="width 10 is not a multiple of 3 heads"):
        ConditionalLayer(10, 3, 8, 0.0, first=True)


def test_the_encoder_layer_is_torchs_post_norm_layer() -> None:
    """With no position code and ReLU-like slope 0, `nn.TransformerEncoderLayer` is the same layer."""
    torch.manual_seed(0)
    ours = EncoderLayer(16, 2, 24, 0.0).eval()
    assert isinstance(ours.feedforward.activation, PReLU)
    nn.init.zeros_(ours.feedforward.activation.weight)  # with slope 0 it is ReLU
    theirs = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True).eval()
    given = {k.replace("feedforward.", ""): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict({k: v for k, v in given.items() if "activation" not in k})
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x, torch.zeros_like(x), None), theirs(x), rtol=1e-5, atol=1e-5)


# --- positions ---------------------------------------------------------------------------------------


def test_frame_positions_in_closed_form() -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    got = frame_positions(mask, 8)
    for b, n in enumerate((5, 3)):
        for t in range(5):
            angle = 2 * math.pi * min(t + 1, n) / (n + 1e-6)  # padding repeats the last frame
            for i in range(4):
                phase = angle / 10000 ** (2 * i / 8)
                assert float(got[b, t, 2 * i]) == pytest.approx(math.sin(phase), abs=1e-5)
                assert float(got[b, t, 2 * i + 1]) == pytest.approx(math.cos(phase), abs=1e-5)


def test_span_positions_in_closed_form() -> None:
    got = span_positions(torch.tensor([[0.3, 0.05]]), 16)[0]
    for half, value in enumerate((0.3, 0.05)):
        for i in range(4):
            phase = 2 * math.pi * value / 10000 ** (2 * i / 8)
            assert float(got[half * 8 + 2 * i]) == pytest.approx(math.sin(phase), abs=1e-6)
            assert float(got[half * 8 + 2 * i + 1]) == pytest.approx(math.cos(phase), abs=1e-6)


def test_endpoint_columns_are_those_of_the_feature_file() -> None:
    got = tef_columns(torch.tensor([7, 4]), 7)
    np.testing.assert_allclose(got[0].numpy(), tef_2d(7), atol=1e-7)
    np.testing.assert_allclose(got[1, :4].numpy(), tef_2d(4), atol=1e-7)


# --- spans -------------------------------------------------------------------------------------------

NUMBER = st.floats(0, 1, width=32)
WINDOW = st.tuples(NUMBER, NUMBER).map(lambda p: (min(p), max(p)))


@given(st.lists(WINDOW, min_size=1, max_size=5), st.lists(WINDOW, min_size=1, max_size=5))
def test_span_arithmetic_equals_its_numpy_twin(
    a: list[tuple[float, float]], b: list[tuple[float, float]]
) -> None:
    ta, tb = torch.tensor(a, dtype=torch.float64)[:, None], torch.tensor(b, dtype=torch.float64)[None]
    long = (ta[..., 1] - ta[..., 0] + tb[..., 1] - tb[..., 0]).numpy() > 1e-6  # below, the clamp rules
    for ours, twin in ((tensors.iou, arrays.temporal_iou), (tensors.giou, arrays.generalised_iou)):
        np.testing.assert_allclose(ours(ta, tb).numpy()[long], twin(a, b)[long], atol=1e-6)
    centre_width = arrays.to_centre_width(a)
    np.testing.assert_allclose(tensors.to_start_end(torch.from_numpy(centre_width)), a, atol=1e-12)


@pytest.mark.parametrize("function", [tensors.iou, tensors.giou])
def test_span_gradients_are_finite_even_for_nothing(function: object) -> None:
    a = torch.tensor([[0.2, 0.6], [0.5, 0.5], [0.0, 0.1]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.3, 0.9], [0.5, 0.5], [0.8, 0.9]], dtype=torch.float64)
    assert callable(function)
    value: Tensor = function(a, b)
    value.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert torch.autograd.gradcheck(function, (a.detach()[:1].requires_grad_(), b[:1]))


def test_logit_inverts_the_sigmoid_within_its_clamp() -> None:
    x = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(tensors.logit(x).sigmoid(), x)
    ends = tensors.logit(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(ends, torch.tensor([-1.0, -1.0, 1.0, 1.0]) * math.log(1000))


# --- small networks ----------------------------------------------------------------------------------


def test_networks_by_hand() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    mlp = MLP(4, 6, 2, 3)
    a, b, c = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    torch.testing.assert_close(mlp(x), c(b(a(x).clamp(min=0)).clamp(min=0)))
    assert mlp.last is c
    feed = Feedforward(4, 6, 0.0)
    inner = feed.linear1(x)
    torch.testing.assert_close(feed(x), feed.linear2(torch.where(inner > 0, inner, 0.25 * inner)))
    blocks = input_blocks(4, 6, 2, 0.0)
    first, second = (dict(block.named_children()) for block in blocks)
    y = first["linear"](first["norm"](x)).clamp(min=0)
    torch.testing.assert_close(blocks(x), second["linear"](second["norm"](y)))  # no ReLU at the end
    assert float(blocks(x).detach().min()) < 0


def test_xavier_fills_matrices_and_leaves_vectors() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 100)
    bias = layer.bias.detach().clone()
    xavier_(layer)
    limit = math.sqrt(6 / 400)
    assert float(layer.weight.detach().abs().max()) <= limit
    assert float(layer.weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert torch.equal(layer.bias, bias)
