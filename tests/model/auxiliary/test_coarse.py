"""The coarse branch: pooling within each recording, and what it adds to training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion
from amrctl.model.auxiliary.coarse import coarser_batch
from amrctl.model.detector import Detector, build
from amrctl.model.layers.scales import pool
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe, rows_of
from tests.test_contract import without_dropout


def made(*options: str) -> Detector:
    torch.manual_seed(0)
    entry = "{kind: coarse" + "".join(f", {o}" for o in options) + "}"
    resolved = recipe(f"model.auxiliary=[{entry}]")
    detector = build(resolved, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    without_dropout(detector)
    return detector


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=4),
    factor=st.integers(2, 5),
    padding=st.integers(0, 4),
)
def test_pooling_is_the_mean_of_what_is_real(lengths: list[int], factor: int, padding: int) -> None:
    rows, mask = rows_of(lengths, 3, torch.Generator().manual_seed(sum(lengths)))
    rows = torch.cat((rows, rows.new_zeros(len(lengths), padding, 3)), 1).double()
    mask = torch.cat((mask, mask.new_zeros(len(lengths), padding)), 1)
    rows = torch.where(mask[..., None], rows, 7.0)  # what stands on padding must not matter
    pooled, real = pool(rows, mask, factor)
    assert pooled.shape[1] == real.shape[1] == -(-rows.shape[1] // factor)
    for b, length in enumerate(lengths):
        for i in range(pooled.shape[1]):
            own = [rows[b, t] for t in range(i * factor, (i + 1) * factor) if t < length]
            assert bool(real[b, i]) == bool(own)
            wanted = torch.stack(own).mean(0) if own else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(pooled[b, i], wanted)


def test_tef_counts_the_real_coarse_frames_of_each_recording() -> None:
    whole = batch(frames=(12, 17, 1))
    short = coarser_batch(whole, 2)
    assert short.lengths.tolist() == [6, 9, 1]
    assert short.audio_mask.sum(1).tolist() == [6, 9, 1]
    assert short.audio[0].shape[1] == 9
    assert torch.equal(short.seconds, whole.seconds)  # spans mean what they meant
    seen: list[Tensor] = []
    detector = made()
    detector.get_submodule("tokens.audio").register_forward_hook(
        lambda module, inputs, result: seen.append(inputs[0])
    )
    detector.train()(whole)
    main, coarse = seen
    assert main.shape[1] == 17
    for b, n in enumerate((6, 9, 1)):
        steps = torch.arange(n)
        torch.testing.assert_close(coarse[b, :n, -2], steps / n)
        torch.testing.assert_close(coarse[b, :n, -1], (steps + 1) / n)
        assert not coarse[b, n:].any()


def test_a_recording_that_never_changes_pools_to_itself() -> None:
    """One frame held over the whole recording: pooled features are that frame, whatever the length."""
    whole = batch(frames=(5, 8))
    held = whole.audio[0][:, :1].expand(-1, 8, -1) * whole.audio_mask[..., None]
    short = coarser_batch(replace(whole, audio=(held,)), 2)
    for b in range(2):
        n = int(short.lengths[b])
        torch.testing.assert_close(short.audio[0][b, :n], whole.audio[0][b, :1].expand(n, -1))


@pytest.mark.parametrize("pool_at", ["features", "projected", "memory"])
def test_the_branch_is_the_detector_on_the_coarse_batch(pool_at: str) -> None:
    detector, whole = made(f"pool: {pool_at}"), batch()
    output = detector.train()(whole)
    branch = output.branches["coarse"].output
    assert branch.spans is not None
    assert branch.spans.shape == output.spans.shape
    assert branch.refined is None
    assert branch.extra is None
    alone = detector.eval()(replace(coarser_batch(whole, 2), targets=None))
    same = torch.allclose(alone.spans, branch.spans, atol=1e-6)
    assert same == (pool_at == "features")
    assert not torch.allclose(branch.spans, output.spans, atol=1e-4)


def test_its_terms_are_the_window_terms_of_the_last_layer_at_a_quarter() -> None:
    detector, whole = made(), batch()
    resolved = recipe("model.auxiliary=[coarse]")
    loss = Criterion(resolved, detector)(detector.train()(whole), whole)
    assert {name for name in loss.raw if name.startswith("coarse")} == {
        "coarse.span",
        "coarse.giou",
        "coarse.label",
    }
    for name, weight in (("span", 10), ("giou", 1), ("label", 4)):
        raw, weighted = loss.raw[f"coarse.{name}"], loss.weighted[f"coarse.{name}"]
        torch.testing.assert_close(weighted, 0.25 * weight * raw)
    loss.total.backward()
    assert not list(detector.auxiliary.parameters())


def test_a_batch_without_moments_and_with_one_frame_is_finite() -> None:
    detector, whole = made(), batch(frames=(1, 1), tokens=(1, 3))
    assert whole.targets is not None
    whole.targets.mask.zero_()
    _finite(detector, whole)


def _finite(detector: Detector, whole: Batch) -> None:
    whole = replace(whole)
    assert whole.targets is not None
    whole.targets.saliency.zero_()
    whole.targets.positives.zero_()
    whole.targets.negatives.zero_()
    whole.targets.pair_mask.zero_()
    loss = Criterion(recipe("model.auxiliary=[coarse]"), detector)(detector.train()(whole), whole)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())
