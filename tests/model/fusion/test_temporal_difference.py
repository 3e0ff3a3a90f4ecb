"""Temporal-difference fusion against its definition in float64 loops, in both of its places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from amrctl.model.encoder.temporal_difference import EncodedDifference
from amrctl.model.encoder.temporal_difference import TemporalDifferenceConfig as EncoderConfig
from amrctl.model.fusion.temporal_difference import ProjectedDifference, TemporalDifferenceConfig
from amrctl.model.layers.temporal_difference import TemporalDifference, differences
from amrctl.model.types import Dims, Memory, Tokens
from tests.small import rows_of

WIDTH = 8
DIMS = Dims(WIDTH, (WIDTH,), (WIDTH,))


def tokens(*, beyond: float = 0.0) -> Tokens:
    """Three recordings, one of a single frame; `beyond` stands on their padding."""
    generator = torch.Generator().manual_seed(1)
    audio, mask = rows_of((6, 9, 1), WIDTH, generator)
    audio = audio.masked_fill(~mask[..., None], beyond)
    text, text_mask = rows_of((4, 2, 1), WIDTH, generator)
    nothing = torch.zeros(3, WIDTH)
    return Tokens(audio, mask, torch.zeros_like(audio), text, text_mask, nothing, nothing)


def filled(part: TemporalDifference) -> TemporalDifference:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.7)
    return part


def slow(part: TemporalDifference, audio: Tensor) -> Tensor:
    """One recording without padding, frame by frame, float64."""
    w = {name: p.detach().double() for name, p in part.named_parameters()}
    x = audio.double()
    out = torch.zeros_like(x)
    for t in range(len(x)):
        before = x[t] - x[t - 1] if t else torch.zeros(WIDTH, dtype=torch.float64)
        after = x[t + 1] - x[t] if t + 1 < len(x) else torch.zeros(WIDTH, dtype=torch.float64)
        rows = [row + w["source"][i] for i, row in enumerate((x[t], before, after))]
        query = w["query.weight"] @ x[t] + w["query.bias"]
        scores = [math.exp(float(row @ query) / math.sqrt(WIDTH)) for row in rows]
        pooled = sum(
            (s / sum(scores) * row for s, row in zip(scores, rows, strict=True)),
            torch.zeros(WIDTH, dtype=torch.float64),
        )
        made = w["unit.weight"] @ pooled + w["unit.bias"]
        out[t] = x[t] + w["gate"] * made[:WIDTH] / (1 + torch.exp(-made[WIDTH:]))
    return out


def both(part_of: int) -> TemporalDifference:
    torch.manual_seed(0)
    if part_of:
        return EncodedDifference(EncoderConfig(), DIMS)
    return ProjectedDifference(TemporalDifferenceConfig(), DIMS)


@pytest.mark.parametrize("part_of", [0, 1])
def test_it_starts_as_the_identity_and_then_is_its_definition(part_of: int) -> None:
    part, given = both(part_of), tokens(beyond=math.nan)
    record = Memory(**vars(given)) if part_of else given
    real = given.audio_mask
    assert torch.equal(part(record).audio[real], given.audio[real])
    out = filled(part)(record)
    for b, frames in enumerate((6, 9, 1)):
        wanted = slow(part, given.audio[b, :frames])
        torch.testing.assert_close(out.audio[b, :frames].double(), wanted, rtol=1e-5, atol=1e-5)
    names = ("encoder-output", "second-difference") if part_of else ("first-difference",)
    kept = [given.audio, out.audio][-len(names) :]
    for name, audio in zip(names, kept, strict=True):
        assert torch.equal(out.extras[name][real], audio[real])
    assert record.extras == {}  # the record that came in is left alone


def test_steps_end_where_the_recording_does() -> None:
    given = tokens(beyond=100.0)
    rows = differences(given.audio, given.audio_mask)
    assert not rows[:, 0, 1].any()
    for b, frames in enumerate((6, 9, 1)):
        assert not rows[b, frames - 1 :, 2].any()
        assert not rows[b, frames:, 1].any()
        assert torch.equal(rows[b, 1:frames, 1], rows[b, : frames - 1, 2])
        assert rows[b, : frames - 1, 2].all()


def test_it_tells_the_way_in_from_the_way_out() -> None:
    """A step up just before a frame and the same step just after it are not the same to it."""
    part = filled(both(0))
    frame, low = torch.randn(1, 1, WIDTH), torch.randn(1, 1, WIDTH)
    real = torch.ones(1, 3, dtype=torch.bool)
    rising = part.fuse(torch.cat((frame - low, frame, frame), dim=1), real)[0, 1]
    leaving = part.fuse(torch.cat((frame, frame, frame + low), dim=1), real)[0, 1]
    assert float((rising - leaving).detach().abs().max()) > 1e-2
