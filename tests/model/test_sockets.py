"""What hooks and training-only parts may add: queries, a bias of attention, a second answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion
from amrctl.model.decoder.conditional import DecoderHook, Queries
from amrctl.model.detector import Detector, build
from amrctl.model.types import Branch, Memory, Output, Tokens
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

EXTRA = 3


class Noised(DecoderHook):
    """Adds the labelled moments as queries that see each other only; at inference nothing."""

    def start(self, queries: Queries, memory: Memory, batch: Batch) -> Queries:
        if batch.targets is None:
            return queries
        own = queries.reference.shape[1]
        group = torch.arange(own + EXTRA) < own
        memory.extras["noised"] = batch.targets.mask
        return Queries(
            torch.cat((queries.content, queries.content[:, :EXTRA]), dim=1),
            torch.cat((queries.reference, batch.targets.spans.clamp(min=0.05)), dim=1),
            (group[:, None] == group[None])[None, None],
            extra=EXTRA,
        )


class Near(DecoderHook):
    """Draws attention to the first frames, the same in every row and head."""

    def bias(self, queries: Queries, memory: Memory, layer: int) -> Tensor:
        return -torch.arange(memory.audio.shape[1], dtype=torch.float32)[None, None, None] * 0.3


def detector(*hooks: DecoderHook) -> Detector:
    torch.manual_seed(0)
    made = build(recipe("model.tokens.dropout=0"), (AUDIO_DIM,), (TEXT_DIM,), training=True)
    made.decoder.hooks = nn.ModuleDict({f"hook-{i}": hook for i, hook in enumerate(hooks)})
    return made


def test_added_queries_are_judged_apart_and_change_no_window() -> None:
    data = batch()
    plain, hooked = detector().eval()(data), detector(Noised()).eval()(data)
    assert plain.extra is None
    for name in ("logits", "spans"):
        torch.testing.assert_close(getattr(hooked, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
    assert hooked.extra is not None
    assert hooked.extra.spans is not None
    assert hooked.extra.spans.shape == (2, 3, EXTRA, 2)
    assert data.targets is not None
    assert torch.equal(hooked.extras["noised"], data.targets.mask)
    moved = batch(seed=1)
    assert moved.targets is not None
    data.targets.spans = moved.targets.spans
    other = detector(Noised()).eval()(data)
    assert other.extra is not None
    assert other.extra.spans is not None
    assert not torch.allclose(other.extra.spans, hooked.extra.spans)
    assert torch.equal(other.spans, hooked.spans)


def test_a_bias_without_rows_meets_the_padding_mask() -> None:
    data = batch()
    plain, near = detector().eval()(data), detector(Near()).eval()(data)
    assert near.spans.isfinite().all()
    assert not torch.allclose(near.spans, plain.spans)
    beyond = data.audio[0].clone()
    beyond[~data.audio_mask] = 7.0
    data.audio = (beyond,)
    torch.testing.assert_close(detector(Near()).eval()(data).spans, near.spans)


class Again(nn.Module):
    """Answers from the same memory once more."""

    def forward(self, whole: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output) -> None:
        output.branches["again"] = Branch(whole.answer(memory, batch), 0.25)


def test_a_branch_counts_its_window_terms_once_at_its_weight() -> None:
    data = batch()
    made = detector()
    made.auxiliary["again"] = Again()
    for part in made.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    loss = Criterion(recipe(), made)(made.train()(data), data)
    del made.auxiliary["again"]
    alone = Criterion(recipe(), made)(made(data), data)
    weights = {"span": 10.0, "giou": 1.0, "label": 4.0}
    assert set(loss.raw) - set(alone.raw) == {f"again.{name}" for name in weights}
    more = torch.zeros(())
    for name, weight in weights.items():
        torch.testing.assert_close(loss.raw[f"again.{name}"], alone.raw[name])
        torch.testing.assert_close(loss.weighted[f"again.{name}"], 0.25 * weight * alone.raw[name])
        more = more + loss.weighted[f"again.{name}"]
    torch.testing.assert_close(loss.total, alone.total + more)
