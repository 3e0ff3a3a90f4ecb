"""PaSST as the audio side, its upper blocks trained.

JKU, DCASE 2025, section 4: blocks 8 to 11 are fine-tuned, the lower ones stay as they were. With them the
last norm trains; patch embedding, class tokens and positions are frozen (the paper names the blocks only).
Structured patch-out as in the public baseline (15 columns, 2 rows at stride 16). The network is
`networks/passt.py` of Koutini et al., Interspeech 2022; a row is the mean of its two class tokens.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from amrctl.encoders.dual.masking import Masking, mask
from amrctl.encoders.dual.towers import AudioConfig, AudioTower, Memory
from amrctl.encoders.networks.passt import PATCH, RATE, STEP, PasstMel, PasstNetwork
from amrctl.encoders.networks.vit import VitSize
from amrctl.encoders.passt import read_passt
from amrctl.encoders.weights import local
from amrctl.registry import component


class Config(AudioConfig):
    """Which weights, what of them trains, and what is left out while training."""

    kind: Literal["passt"] = "passt"
    checkpoint: str | None = Field(None, description="official file of the weights; none: random ones")
    train_from: int = Field(8, ge=0, description="first block that trains; those below are frozen")
    drop_columns: int = Field(15, ge=0, description="columns of patches left out in training (patch-out)")
    drop_rows: int = Field(2, ge=0, description="rows of patches left out in training")
    masking: Masking | None = Masking()
    stride: int = Field(16, description="between patches, of random weights: 10, 12, 14 or 16")
    columns: int = Field(62, ge=1, description="columns that have positions, of random weights")


@component("retrieval-audio", "passt", Config)
class Passt(AudioTower):
    """Segments of 10 s at 32 kHz; shorter sounds use the first positions."""

    sample_rate = RATE
    least = PATCH * STEP / RATE

    def __init__(self, config: Config, memory: Memory | None = None, *, size: VitSize | None = None) -> None:
        super().__init__()
        self.config: Config = config
        if memory is not None:
            size = VitSize(**memory["size"])
            self.network = PasstNetwork(stride=memory["stride"], columns=memory["columns"], size=size)
        elif config.checkpoint is not None:
            self.network = read_passt(local(config.checkpoint), size=size)
        else:
            self.network = PasstNetwork(stride=config.stride, columns=config.columns, size=size)
        self.network.drop_rows, self.network.drop_columns = config.drop_rows, config.drop_columns
        self.size = size or VitSize()
        self.width = self.size.width
        self.front = PasstMel()
        self.network.requires_grad_(False)
        for part in (*self.network.blocks[config.train_from :], self.network.norm):
            part.requires_grad_(True)

    def forward(self, spectra: Tensor) -> Tensor:
        """[N, T, 128] to [N, 768]."""
        if self.training and self.config.masking is not None:
            spectra = mask(spectra, self.config.masking)
        rows: Tensor = self.network(spectra)
        return rows

    def memory(self) -> Memory:
        """Stride, positions and size: they are those of the file, not of the recipe."""
        network = self.network
        return {"stride": network.stride, "columns": network.columns, "size": vars(self.size)}
