"""Text-guided audio enhancer: a shallow, residual change of the audio tokens that the sentence steers.

Source: Guangzhou, DCASE 2026 Task 6, section 3.2: audio tokens attend to text tokens, the pooled text
gives FiLM modulation (Perez et al., AAAI 2018), a temporal convolution of one scale sees the
neighbours, and a residual path keeps the tokens. It stands first in `fusion`. The report gives no
sizes. Ours: one attention layer with 8 heads, post-norm before the modulation, mean of the real text
tokens as pooled text, a depth-wise convolution over 3 frames, GELU and a linear layer. That layer
starts at zero, so that the enhancer starts as the identity, to the bit, and can be put before a
trained detector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator
from torch import nn
from torch.nn import functional

from amrctl.model.layers.attention import MultiheadAttention, key_mask
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.pooling import masked_mean
from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component

NAME = "text-guided-enhancer"


class TextGuidedConfig(ComponentConfig):
    kind: Literal["text-guided-enhancer"] = "text-guided-enhancer"
    heads: int = Field(8, ge=1)
    frames: int = Field(3, ge=1, description="reach of the convolution, an odd number of frames")
    dropout: float = Field(0.1, ge=0, lt=1)

    @field_validator("frames")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the number of frames must be odd")
        return value


@component("fusion", NAME, TextGuidedConfig)
class TextGuided(nn.Module):
    """audio + out(gelu(convolve(modulate(norm(audio + attention))))); only the audio changes."""

    identity_when_zero = ("out.weight", "out.bias")
    # the last layer is 0 before the first step, so nothing flows back through it
    zero_gradient = (
        *(f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias")),
        *(
            f"{part}.{name}"
            for part in ("attention.out_proj", "norm", "film", "conv")
            for name in ("weight", "bias")
        ),
    )

    def __init__(self, config: TextGuidedConfig, dims: Dims) -> None:
        super().__init__()
        width = dims.hidden
        self.attention = MultiheadAttention(width, config.heads, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.conv = nn.Conv1d(width, width, config.frames, padding=config.frames // 2, groups=width)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(width, width)
        for layer in (self.film, self.out):  # no modulation and no change to begin with
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        audio, text = tokens.audio, tokens.text
        seen = self.attention(audio + tokens.audio_position, text, text, key_mask(tokens.text_mask))
        scale, offset = self.film(masked_mean(text, tokens.text_mask))[:, None].chunk(2, -1)
        x = self.norm(audio + self.dropout(seen)) * (1 + scale) + offset
        # padding must not leak into its neighbours
        x = x.masked_fill(~tokens.audio_mask[..., None], 0.0)
        x = functional.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return replace(tokens, audio=audio + self.dropout(self.out(x)))
