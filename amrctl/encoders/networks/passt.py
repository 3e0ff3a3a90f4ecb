"""PaSST: a vision transformer on overlapping patches of a mel spectrogram, with two class tokens.

Koutini, Schlueter, Eghbal-zadeh and Widmer, "Efficient Training of Audio Transformers with Patchout",
Interspeech 2022. Positions are a vector per band row plus a vector per time column, so that shorter
sounds use the first columns and patches may be left out in training (section 2.2). The published
front end is kept; its random changes of the mel bank in training are not part of this module.

B sounds, T spectra, F x C patches (rows x columns), N tokens, W width (768).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from amrctl.encoders.mel import hann, mel_bank, mel_power
from amrctl.encoders.networks.vit import VitSize, block_table, vit_blocks

RATE, FFT, WINDOW, STEP, BANDS = 32_000, 1024, 800, 320, 128
LOW, HIGH = 0.0, 15_000.0  # Hz
PATCH = 16
PRE_EMPHASIS, FLOOR = 0.97, 1e-5


def patch_count(length: int, stride: int) -> int:
    """How many patches of 16 fit into `length`, one every `stride`."""
    return max(0, (length - PATCH) // stride + 1)


class PasstMel(nn.Module):
    """Front end: 32 kHz samples to scaled log-mel spectra; nothing in it is learnt."""

    bank: Tensor
    taper: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = mel_bank(rate=RATE, fft=FFT, bands=BANDS, low=LOW, high=HIGH, scale="kaldi")
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("taper", hann(WINDOW, periodic=False), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """[B, S] float32 samples to [B, 1 + (S - 1) // 320, 128] float32."""
        emphasised = samples[:, 1:] - PRE_EMPHASIS * samples[:, :-1]
        return ((mel_power(emphasised, self.bank, self.taper, STEP) + FLOOR).log() + 4.5) / 5


class PasstNetwork(nn.Module):
    """Spectra to one vector per sound: the mean of the two class tokens after the last norm.

    `stride` between patches is 10, 12, 14 or 16 in the published files; `columns` is how many columns of
    time have positions (99: 10 s at stride 10). `drop_rows` and `drop_columns` leave out that many rows
    and columns of patches, drawn anew for each batch while training (structured patchout); in eval mode
    all patches are used. Gradients flow wherever parameters ask for them.
    """

    def __init__(
        self,
        *,
        stride: int = 10,
        columns: int = 99,
        size: VitSize | None = None,
        drop_rows: int = 0,
        drop_columns: int = 0,
    ) -> None:
        super().__init__()
        size = size or VitSize()
        self.stride, self.rows, self.columns = stride, patch_count(BANDS, stride), columns
        self.drop_rows, self.drop_columns = drop_rows, drop_columns
        self.projection = nn.Conv2d(1, size.width, PATCH, stride=stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.token_positions = nn.Parameter(torch.zeros(1, 2, size.width))
        self.row_positions = nn.Parameter(torch.zeros(1, size.width, self.rows, 1))
        self.column_positions = nn.Parameter(torch.zeros(1, size.width, 1, columns))
        for parameter in (
            self.cls_token,
            self.dist_token,
            self.token_positions,
            self.row_positions,
            self.column_positions,
        ):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.blocks = vit_blocks(size, eps=1e-6)
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(self, spectra: Tensor) -> Tensor:
        """[B, T, 128] to [B, W]; not scaled to length 1."""
        return self.tokens(spectra)[:, :2].mean(dim=1)

    def tokens(self, spectra: Tensor) -> Tensor:
        """[B, T, 128] to [B, 2 + patches, W]: class and distillation token, then patches, low bands first,
        time fastest. Raises `ValueError` for sounds that are shorter than a patch or outrun the positions."""
        columns = patch_count(spectra.shape[1], self.stride)
        if not 0 < columns <= self.columns:
            raise ValueError(f"{spectra.shape[1]} spectra are {columns} columns, not 1 to {self.columns}")
        patches = self.projection(spectra.transpose(1, 2).unsqueeze(1))
        patches = self._patchout(patches + self.row_positions + self.column_positions[..., :columns])
        first = torch.cat([self.cls_token, self.dist_token], dim=1) + self.token_positions
        x = torch.cat([first.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))

    def _patchout(self, patches: Tensor) -> Tensor:
        """[B, W, F, C]: leave out rows and columns, the same ones for the whole batch; keep one at least."""
        if self.training:
            for dim, drop in ((2, self.drop_rows), (3, self.drop_columns)):
                count = patches.shape[dim]
                keep = max(1, count - drop)
                if keep < count:
                    chosen = torch.randperm(count, device=patches.device)[:keep].sort().values
                    patches = patches.index_select(dim, chosen)
        return patches

    def table(self) -> dict[str, str | tuple[str, ...]]:
        """Official key to our name for every parameter."""
        return {
            "cls_token": "cls_token",
            "dist_token": "dist_token",
            "new_pos_embed": "token_positions",
            "freq_new_pos_embed": "row_positions",
            "time_new_pos_embed": "column_positions",
            "patch_embed.proj.weight": "projection.weight",
            "patch_embed.proj.bias": "projection.bias",
            **block_table("blocks", "blocks", len(self.blocks)),
            "norm.weight": "norm.weight",
            "norm.bias": "norm.bias",
        }
