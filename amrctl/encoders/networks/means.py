"""The mean over what is real: of a sentence's tokens, of a recording's segments."""

from __future__ import annotations

from torch import Tensor


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real rows (0 where there is none), [B, L, H] and [B, L] bool → [B, H] float32."""
    total = rows.float().masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
