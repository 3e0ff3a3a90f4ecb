"""Time and frequency masking of spectra while training.

JKU, DCASE 2025, section 4 ("time and frequency masking on the input mel-spectrograms"); SpecAugment
(Park et al., Interspeech 2019) without the warping. The paper gives no sizes. Each segment draws its own
stripes; a stripe becomes the segment's mean, so that no level is introduced that it did not have.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Masking(BaseModel):
    """Widest stripes as shares of the length and of the bands, and how many of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    time: float = Field(default=0.1, ge=0, le=1, description="widest stripe, as a share of the segment")
    bands: float = Field(default=0.15, ge=0, le=1, description="widest stripe, as a share of the bands")
    stripes: int = Field(default=2, ge=0, description="of each kind")


def mask(spectra: Tensor, config: Masking) -> Tensor:
    """[N, T, F] with stripes of drawn width and place, each from 0 to the widest."""
    fill = spectra.mean(dim=(1, 2), keepdim=True)
    hidden = torch.zeros_like(spectra, dtype=torch.bool)
    for dim, share in ((1, config.time), (2, config.bands)):
        size = spectra.shape[dim]
        widest = int(share * size)
        for _ in range(config.stripes if widest else 0):
            hidden = hidden | _stripe(len(spectra), size, widest, spectra.device).unsqueeze(3 - dim)
    return torch.where(hidden, fill, spectra)


def _stripe(rows: int, size: int, widest: int, device: torch.device) -> Tensor:
    """[rows, size] bool: a run of 0 to `widest` places in each row."""
    width = torch.randint(0, widest + 1, (rows, 1), device=device)
    first = (torch.rand(rows, 1, device=device) * (size - width + 1)).long()
    place = torch.arange(size, device=device)[None]
    return (place >= first) & (place < first + width)
