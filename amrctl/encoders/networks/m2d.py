"""Audio side of M2D-CLAP: log-mel, a vision transformer on its patches, and the head of the joint space.

Niizumi et al., "M2D-CLAP: Exploring General-purpose Audio-Language Representations Beyond CLAP",
IEEE Access 2025 (head: one block with a learned semantic token), and "M2D-CLAP: Masked Modeling Duo
Meets CLAP for Learning General-purpose Audio-Language Representation", Interspeech 2024 (head: a
two-layer perceptron on the mean token). Shapes, constants and official names are facts listed in
docs/encoders/m2d-clap.md; the blocks are transformers', and no code of NTT's is used.

B windows, T spectra, N tokens, W width (768).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.encoders.mel import hann, mel_bank, mel_power
from amrctl.encoders.networks.vit import VitSize, block_table, vit_blocks

RATE, FFT, STEP, BANDS = 16_000, 400, 160, 80
LOW, HIGH = 50.0, 8000.0  # Hz
FLOOR = 2.0**-23  # inside the logarithm: the spacing of float32 at 1
OLD_STATS = (-7.1, 4.2)  # mean and deviation of files that do not carry `norm_stats`

Table = dict[str, str | tuple[str, ...]]


class SemanticHead(nn.Module):
    """The 2025 head: a learned token reads the patch tokens through one block with a single head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = vit_blocks(VitSize(depth=1, width=width, heads=1, hidden=width), eps=1e-5)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, W] to [B, W]."""
        x = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x[:, 0]))

    @staticmethod
    def table(official: str, ours: str) -> Table:
        """Official keys of the head, which begin with `official`, to our names."""
        return {
            f"{official}.sem_token": f"{ours}.token",
            **block_table(f"{official}.sem_blocks", f"{ours}.blocks", 1),
            f"{official}.norm.weight": f"{ours}.norm.weight",
            f"{official}.norm.bias": f"{ours}.norm.bias",
        }


class MlpHead(nn.Module):
    """The 2024 head: mean of the patch tokens, then linear, ReLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, W] to [B, W]."""
        return cast(Tensor, self.second(functional.relu(self.first(tokens.mean(dim=1)))))

    @staticmethod
    def table(official: str, ours: str) -> Table:
        """Official keys of the head, which begin with `official`, to our names."""
        return {
            f"{official}.{i}.{kind}": f"{ours}.{name}.{kind}"
            for i, name in ((0, "first"), (2, "second"))
            for kind in ("weight", "bias")
        }


class M2dAudio(nn.Module):
    """Sound at 16 kHz to one vector per window.

    `patch` is bands x spectra of one patch, `columns` how many patches in time the positions cover,
    `unit` how many spectra the network takes at once; `pad` fills the last column with the mean of the
    training data, else a column that is not full is left out. `head` is "semantic" (2025) or "mlp" (2024).
    """

    norm_stats: Tensor
    bank: Tensor
    taper: Tensor

    def __init__(
        self,
        *,
        patch: tuple[int, int] = (16, 16),
        columns: int = 62,
        unit: int = 1001,
        head: str = "semantic",
        pad: bool = True,
        size: VitSize | None = None,
    ) -> None:
        super().__init__()
        size = size or VitSize()
        self.patch, self.columns, self.unit, self.pad = patch, columns, unit, pad
        self.rows = BANDS // patch[0]
        bank = mel_bank(rate=RATE, fft=FFT, bands=BANDS, low=LOW, high=HIGH, scale="slaney", area=True)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("taper", hann(FFT), persistent=False)
        self.projection = nn.Conv2d(1, size.width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.rows * columns, size.width))
        self.blocks = vit_blocks(size, eps=1e-6)
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.head = SemanticHead(size.width) if head == "semantic" else MlpHead(size.width)
        self.register_buffer("norm_stats", torch.tensor(OLD_STATS))

    @property
    def shortest(self) -> int:
        """The fewest samples of a window: the transform mirrors half a frame at its ends, and without
        padding one patch must be full."""
        return FFT // 2 + 1 if self.pad else max(FFT // 2 + 1, (self.patch[1] - 1) * STEP)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, 80] of `log_mel` to [B, W]; not scaled to length 1."""
        return cast(Tensor, self.head(self.tokens(frames)))

    def log_mel(self, samples: Tensor) -> Tensor:
        """[B, S] samples to [B, T, 80], T = 1 + S // 160: natural logarithm, then centred and scaled by
        the checkpoint's constants."""
        levels = (mel_power(samples, self.bank, self.taper, STEP) + FLOOR).log()
        return (levels - self.norm_stats[0]) / self.norm_stats[1]

    def tokens(self, frames: Tensor) -> Tensor:
        """[B, T, 80] to the patch tokens [B, N, W]: within a unit of time low bands first, time runs
        fastest; units follow each other."""
        units = [self._unit(unit) for unit in frames.split(self.unit, dim=1) if self._columns(unit.shape[1])]
        return torch.cat(units, dim=1)

    def _columns(self, spectra: int) -> int:
        step = self.patch[1]
        return min(-(-spectra // step) if self.pad else spectra // step, self.columns)

    def _unit(self, frames: Tensor) -> Tensor:
        """At most `unit` spectra, [B, T, 80], to [B, rows * columns, W]."""
        columns = self._columns(frames.shape[1])
        missing = columns * self.patch[1] - frames.shape[1]  # negative: what is too much is cut off
        image = functional.pad(frames, (0, 0, 0, missing)).transpose(1, 2).unsqueeze(1)
        patches = self.projection(image).flatten(2).transpose(1, 2)
        # The grid of positions is sliced, not stretched: the first columns of each row.
        grid = self.positions[:, 1:].unflatten(1, (self.rows, self.columns))[:, :, :columns]
        first = (self.cls_token + self.positions[:, :1]).expand(len(frames), -1, -1)
        x = torch.cat([first, patches + grid.flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x)[:, 1:])

    def table(self, root: str) -> Table:
        """Official key to our name for every parameter; `root` is "backbone." (2025) or "" (2024)."""
        return {
            f"{root}cls_token": "cls_token",
            f"{root}pos_embed": "positions",
            f"{root}patch_embed.proj.weight": "projection.weight",
            f"{root}patch_embed.proj.bias": "projection.bias",
            **block_table(f"{root}blocks", "blocks", len(self.blocks)),
            f"{root}norm.weight": "norm.weight",
            f"{root}norm.bias": "norm.bias",
            f"{root}norm_stats": "norm_stats",
            **self.head.table(f"{root}audio_proj", "head"),
        }
