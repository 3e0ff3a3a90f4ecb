"""Bimodal Gaussian prior: each query looks around the two ends of the span it is about to refine.

Source: Yokohama, DCASE 2026 Task 6, section 2.5, after SMCA (Gao et al., ICCV 2021): the logarithm of the
sum of two Gaussians, around the start and the end of the layer's reference span, is added to the
cross-attention logits; their variances come from the content query by a linear layer. Left open there,
ours: the layer is shared by the decoder's layers and gives the logarithms of both variances, which start
at `sigma` squared; the Gaussians are not normalised and are the same for all heads; a standard deviation
is at least half a frame. As a part of a softmax the prior counts up to a constant per query: its highest
value on a real frame is subtracted, so that half precision keeps what matters.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.model.decoder.conditional import DecoderHook, Queries
from amrctl.model.layers.spans import to_start_end
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component

NAME = "gaussian-prior"
_WIDEST = 2 * math.log(4.0)  # of a log variance: four recordings, where the prior is flat


class GaussianPriorConfig(ComponentConfig):
    kind: Literal["gaussian-prior"] = "gaussian-prior"
    sigma: float = Field(0.1, gt=0, le=1, description="standard deviation before training, in recordings")


def log_prior(spans: Tensor, log_variance: Tensor, mask: Tensor) -> Tensor:
    """log(exp(-(p - s)^2 / 2 v_s) + exp(-(p - e)^2 / 2 v_e)) less its maximum over the real frames.

    p is a frame's centre, s and e are a span's ends, all in 0..1 of the real frames. `spans` and
    `log_variance` (of start and end) [B, N, 2], `mask` [B, T] bool. Returns [B, N, T] float32.
    """
    ends = to_start_end(spans.float())
    n = mask.sum(1)[:, None, None].float()
    narrowest = -2 * torch.log(2 * n)  # half a frame
    log_variance = torch.maximum(log_variance.float().clamp(max=_WIDEST), narrowest)
    at = (torch.arange(mask.shape[1], device=mask.device) + 0.5) / n  # [B, 1, T]
    exponents = [
        -0.5 * (at - ends[..., i, None]).square() * torch.exp(-log_variance[..., i, None]) for i in (0, 1)
    ]
    prior = torch.logaddexp(*exponents)
    highest = prior.detach().masked_fill(~mask[:, None], -math.inf).amax(-1, keepdim=True)
    return prior - highest


@component("hooks", NAME, GaussianPriorConfig)
class GaussianPrior(DecoderHook):
    """Adds the prior to the cross-attention logits of every decoder layer."""

    def __init__(self, config: GaussianPriorConfig, dims: Dims) -> None:
        super().__init__()
        self.log_variance = nn.Linear(dims.hidden, 2)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, 2 * math.log(config.sigma))

    def bias(self, queries: Queries, memory: Memory, layer: int) -> Tensor:
        # like the layer itself, the prior looks at the detached reference
        reference = queries.reference.detach() if layer else queries.reference
        prior = log_prior(reference, self.log_variance(queries.content), memory.audio_mask)
        return prior[:, None].to(memory.audio.dtype)
