"""Reading frames through predicted windows: curves at their ends, means over their inside.

Spans are (centre, width) in 0..1 of the real frames of each recording; frame t covers t to t + 1 and
stands at t + 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.model.layers.spans import to_start_end


def margin(logits: Tensor) -> Tensor:
    """Foreground logit less background logit (a single logit is its own margin), [..., C] → [...]."""
    return logits[..., 0] - logits[..., 1] if logits.shape[-1] == 2 else logits[..., 0]


def value_at(curve: Tensor, at: Tensor, mask: Tensor) -> Tensor:
    """A curve between its frames, by linear interpolation; constant beyond the outermost real frames.

    `curve` [B, T], `mask` [B, T] bool (real frames first, one at least), `at` [..., B, N] in 0..1.
    Returns [..., B, N].
    """
    last = (mask.sum(1, keepdim=True) - 1).to(at.dtype)
    place = torch.minimum((at * (last + 1) - 0.5).clamp(min=0), last)
    below = place.floor()
    above = torch.minimum(below + 1, last)
    rows = curve.expand(*at.shape[:-1], curve.shape[1])
    left, right = (rows.gather(-1, index.long()) for index in (below, above))
    return left + (right - left) * (place - below)


def boundary_confidence(boundary: Tensor | None, spans: Tensor, mask: Tensor) -> Tensor:
    """Start probability at a window's start times end probability at its end, without gradient.

    `boundary` [B, T, 2] logits; None (the recipe has no such head) gives 1. `spans` [..., B, N, 2],
    `mask` [B, T]. Returns [..., B, N] float32 in 0..1.
    """
    spans = spans.detach().float()
    if boundary is None:
        return torch.ones_like(spans[..., 0])
    start, end = to_start_end(spans).unbind(-1)
    starts, ends = boundary.detach().float().sigmoid().unbind(-1)
    return value_at(starts, start, mask) * value_at(ends, end, mask)


def window_weights(spans: Tensor, mask: Tensor, edge: float) -> Tensor:
    """Weights of frames inside soft windows, [B, N, T]; each row sums to 1, padding weighs 0.

    A frame at c weighs sigmoid((c - start) / edge) sigmoid((end - c) / edge), in frames, before
    normalisation: smooth everywhere, so that a window's ends get a gradient; a window of no length
    weighs the frames around its place. `spans` [B, N, 2], `mask` [B, T] bool.
    """
    frames = mask.sum(1)[:, None, None].to(spans.dtype)
    start, end = (to_start_end(spans) * frames)[..., None, :].unbind(-1)
    centre = torch.arange(mask.shape[1], device=spans.device, dtype=spans.dtype) + 0.5
    # in logarithms, and normalised by softmax: a row cannot underflow to 0 / 0
    inside = functional.logsigmoid((centre - start) / edge) + functional.logsigmoid((end - centre) / edge)
    return inside.masked_fill(~mask[:, None], float("-inf")).softmax(-1)


def weighted_mean(rows: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """`rows` [B, T, H] averaged with `weights` [B, N, T] of `window_weights`; [B, N, H]."""
    # what stands on padding may be anything, and 0 times NaN is NaN
    return torch.matmul(weights, rows.to(weights.dtype).masked_fill(~mask[..., None], 0.0))


def shift(spans: Tensor, delta: Tensor) -> Tensor:
    """sigmoid(logit(spans) + delta), written so that delta 0 gives `spans` to the last bit.

    `spans` in 0..1 and `delta` of one shape; delta beyond 10 either way counts as 10.
    """
    # each direction in the form whose divisor does not come near 0
    up, down = torch.expm1(delta.clamp(0.0, 10.0)), torch.expm1(-delta.clamp(-10.0, 0.0))
    share = torch.where(delta < 0, -down / (1 + (1 - spans) * down), up / (1 + spans * up))
    return spans + spans * (1 - spans) * share
