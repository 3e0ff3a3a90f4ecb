"""Segments, batches, pooling, masks and the contrastive loss against slow and obvious calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.batching import epoch_batches, steps
from amrctl.encoders.dual import segments
from amrctl.encoders.dual.masking import Masking, mask
from amrctl.encoders.dual.model import Embedded
from amrctl.encoders.dual.pooling.attention import Attention, Config
from amrctl.losses.retrieval.contrastive import Config as LossConfig
from amrctl.losses.retrieval.contrastive import Contrastive


@given(st.integers(1, 700), st.integers(20, 120), st.integers(10, 120), st.lists(st.integers(0, 300)))
@settings(deadline=None)
def test_segments_of_a_stream_are_those_of_the_whole(
    length: int, segment: int, hop: int, cuts: list[int]
) -> None:
    sound = np.arange(1, length + 1, dtype=np.float32)
    wanted = [0] if length <= segment + hop // 50 else []
    at = 0
    while not wanted or wanted[-1] + segment < length:
        if at + segment + hop // 50 >= length:
            wanted.append(max(length - segment, 0))
            break
        wanted.append(at)
        at += hop
    if length <= segment + hop // 50:
        wanted = [max(length - segment, 0)]
    assert segments.starts(length, segment, hop) == wanted
    found = list(segments.stream(np.split(sound, sorted(c for c in cuts if c <= length)), segment, hop))
    assert [first for first, _ in found] == wanted
    for first, piece in found:
        heard = sound[first : first + segment]
        np.testing.assert_array_equal(piece[: len(heard)], heard)
        assert not piece[len(heard) :].any()
    if hop <= segment:  # nothing is missed
        heard_samples = {int(s) for _, piece in found for s in piece} - {0}
        assert heard_samples == set(range(1, length + 1))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(2, 20), st.integers(0, 99))
@settings(deadline=None)
def test_no_recording_is_twice_in_a_batch(owners: list[int], size: int, seed: int) -> None:
    names = [f"v{i}" for i in owners]
    batches = epoch_batches(names, size, seed, 3)
    assert batches == epoch_batches(names, size, seed, 3)
    assert len(batches) == steps(len(names), size)
    drawn = [i for batch in batches for i in batch]
    assert len(set(drawn)) == len(drawn)
    for batch in batches:
        assert len(batch) <= size
        assert len({names[i] for i in batch}) == len(batch)
    most = max(map(names.count, names))
    if len(set(names)) >= size and most == 1 and len(names) % size != 1:
        assert sorted(drawn) == list(range(len(names)))


def test_every_pair_is_drawn_and_epochs_differ() -> None:
    names = [f"v{i // 5}" for i in range(200)]
    one, two = (epoch_batches(names, 16, 0, epoch) for epoch in (1, 2))
    assert sorted(i for batch in one for i in batch) == list(range(200))
    assert one != two


def test_contrastive_loss_is_equation_2() -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = (
        torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=-1) for _ in range(2)
    )
    tau = 0.07
    total = 0.0
    a, t = audio.double().numpy(), text.double().numpy()
    cosine = [[float((x * y).sum() / math.sqrt((x @ x) * (y @ y))) for y in t] for x in a]  # eq. 1
    for i in range(7):
        over_audio = sum(math.exp(cosine[j][i] / tau) for j in range(7))
        over_text = sum(math.exp(cosine[i][j] / tau) for j in range(7))
        total -= math.log(math.exp(cosine[i][i] / tau) / over_audio) / 7
        total -= math.log(math.exp(cosine[i][i] / tau) / over_text) / 7
    loss = Contrastive(LossConfig(weight=1))(Embedded(audio, text, torch.tensor(1 / tau)))
    assert float(loss) == pytest.approx(total, rel=1e-6)


def test_attention_pooling_is_equation_3_and_never_reads_padding() -> None:
    torch.manual_seed(0)
    pool = Attention(Config(hidden=None), 6)
    rows = torch.randn(3, 4, 6)
    counts = [4, 2, 1]
    real = torch.arange(4)[None] < torch.tensor(counts)[:, None]
    found = pool(rows, real)
    for b, count in enumerate(counts):
        z = rows[b, :count].double()
        inner = torch.tanh(z @ pool.inner.weight.double().T + pool.inner.bias.double())
        scores = (inner @ pool.score.weight.double().T)[:, 0]
        weights = torch.exp(scores) / torch.exp(scores).sum()
        torch.testing.assert_close(found[b].double(), (weights[:, None] * z).sum(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], rows[2, 0])
    spoiled = rows.masked_fill(~real[..., None], float("nan"))
    torch.testing.assert_close(pool(spoiled, real), found)


def test_masks_hide_stripes_of_at_most_their_width() -> None:
    torch.manual_seed(0)
    spectra = torch.randn(40, 30, 20) + 5
    masked = mask(spectra, Masking(time=0.2, bands=0.1, stripes=1))
    hidden = masked != spectra
    assert 0.01 < hidden.float().mean() < 0.3
    for row in hidden:
        times, bands = row.all(dim=1).sum(), row.all(dim=0).sum()
        assert times <= 6
        assert bands <= 2
        rest = row[~row.all(dim=1)][:, ~row.all(dim=0)]
        assert not rest.any()  # stripes and nothing else
    widths = {int(row.all(dim=1).sum()) for row in hidden}
    assert {0, 6} <= widths
    assert torch.equal(mask(spectra, Masking(stripes=0)), spectra)
