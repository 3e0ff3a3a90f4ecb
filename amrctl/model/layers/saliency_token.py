"""The saliency token of CG-DETR: what a recording is like, and what its relevant frames are like.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835), moment-adaptive saliency detector, as in its released
code. The context is the mean of the recording's frames. Frames are sorted softly into learned prompts by
the cosine of what they add to the context; the prompts that the frames of large `share` choose are added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.layers.pooling import masked_mean


class SaliencyToken(nn.Module):
    """context + sum of the `top` prompts, each times its weight; `position` is the token's position code."""

    def __init__(self, width: int, prompts: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.prompts = nn.Parameter(torch.randn(prompts, width))
        self.position = nn.Parameter(torch.randn(width))

    def forward(self, audio: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        """`audio` [B, T, H], `mask` [B, T], `share` [B, T] >= 0: how much a frame counts; [B, H] float32."""
        audio = audio.float()
        context = masked_mean(audio, mask).detach()
        kind = (
            functional.normalize(audio - context[:, None], dim=-1)
            @ functional.normalize(self.prompts, dim=-1).T
        )
        share = share.masked_fill(~mask, 0.0)
        share = share / share.sum(1, keepdim=True).clamp(min=1e-12)
        # padding may hold anything, and 0 x NaN is no zero
        chosen = (kind.softmax(-1) * share[..., None]).masked_fill(~mask[..., None], 0.0).sum(1)
        weight, which = chosen.topk(self.top, dim=1)
        return (weight[..., None] * self.prompts[which]).sum(1) + context
