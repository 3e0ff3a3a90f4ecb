"""HTSAT on a CPU: the numbers of transformers' `ClapAudioEncoder`, with less beside its products.

A block is done for some windows of an image at a time, from its first norm to its last sum, so that what is
between stays in the cache; scores get bias, mask and softmax in one loop, and the sum that runs through the
blocks is float32 also where products are bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from amrctl.encoders.networks import kernels
from amrctl.encoders.networks.products import Heads, Norm, array, gelu, joined

ROWS = 2048  # tokens that a block takes at a time


class Htsat:
    """A `ClapAudioEncoder` in evaluation mode on a CPU; it shares the weights of `encoder`."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        encoder.patch_embed.float()  # a product of 16 numbers, not worth half precision
        self.image = _Image(encoder) if _Image.fits(encoder) else None
        self.stages = [
            _Stage(layer, resolution)
            for layer, resolution in zip(encoder.layers, encoder.input_resolutions, strict=True)
        ]

    def __call__(self, mel: Tensor, longer: bool = False) -> Tensor:
        """Decibels `(n, 1 or 4, frames, bands)` to the mean token `(n, dim)` float32.

        `longer`: whether a fused model gets crops beside each image.
        """
        large = sum(stage.tokens >= ROWS for stage in self.stages)
        images = []
        for window in mel.split(1):
            tokens = self._embed(window, longer)
            for stage in self.stages[:large]:
                tokens = stage(tokens)
            images.append(tokens)
        tokens = torch.cat(images)
        for stage in self.stages[large:]:
            tokens = stage(tokens)
        rows: Tensor = self.encoder.norm(tokens).unflatten(0, (len(mel), -1)).mean(dim=1)
        return rows

    def _embed(self, mel: Tensor, longer: bool) -> Tensor:
        """Decibels of one window to `(tokens, width)` float32, in the order of the image's rows."""
        encoder = self.encoder
        if self.image is not None:
            return self.image(mel[0, 0])
        image = encoder.reshape_mel2img(encoder.batch_norm(mel.transpose(1, 3)).transpose(1, 3))
        crops = torch.arange(int(longer)) if encoder.enable_fusion else None
        tokens: Tensor = encoder.patch_embed(image, crops)
        return tokens[0].contiguous()


class _Image:
    """A spectrogram as the patches of an image, where nothing has crops beside it."""

    def __init__(self, encoder: Any) -> None:
        embed, norm = encoder.patch_embed, encoder.batch_norm
        self.columns, self.length = encoder.spec_size * encoder.freq_ratio, encoder.spec_size
        self.side = encoder.patch_stride[0]
        scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
        self.factor, self.plus = array(scale), array(norm.bias.data - norm.running_mean * scale)
        self.weight, self.bias = embed.proj.weight.data.flatten(1).t().contiguous(), embed.proj.bias.data
        self.norm = Norm(embed.norm)
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def fits(encoder: Any) -> bool:
        """Whether there is only what this does."""
        config, embed = encoder.config, encoder.patch_embed
        return bool(
            not encoder.enable_fusion
            and config.num_mel_bins * encoder.freq_ratio == encoder.spec_size
            and embed.proj.kernel_size == embed.proj.stride == (encoder.patch_stride[0],) * 2
            and embed.proj.in_channels == 1
            and isinstance(embed.norm, torch.nn.LayerNorm)
        )

    def __call__(self, mel: Tensor) -> Tensor:
        """`(frames, bands)` float32 to `(tokens, width)`."""
        if len(mel) not in self.tables:
            self.tables[len(mel)] = self._table(len(mel))
        places, shares = self.tables[len(mel)]
        cut = torch.empty(self.length**2 // self.side**2, self.side**2)
        given = array(mel.contiguous()), places, shares, self.factor, self.plus, self.length, self.side
        kernels.patches(*given, array(cut))
        return self.norm(torch.addmm(self.bias, cut, self.weight), torch.float32)

    def _table(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """For each column of the image four frames, and how much of each: torch's bicubic stretching.

        Raises `ValueError`: more frames than columns.
        """
        if frames > self.columns:
            raise ValueError(f"an image holds {self.columns} frames, not {frames}")
        whole = torch.eye(frames)
        if frames < self.columns:
            size = (self.columns, frames)
            whole = functional.interpolate(whole[None, None], size, mode="bicubic", align_corners=True)[0, 0]
        places = whole.abs().topk(min(4, frames), dim=1).indices
        return array(places.to(torch.int32)), array(whole.gather(1, places))


class _Stage:
    """Blocks of one resolution, then four tokens to one of twice the width, except after the last stage."""

    def __init__(self, layer: Any, resolution: tuple[int, int]) -> None:
        self.resolution = resolution
        self.tokens = resolution[0] * resolution[1]
        self.blocks = [_Block(block, resolution) for block in layer.blocks]
        self.down = None
        if layer.downsample is not None:
            self.down = Norm(layer.downsample.norm), joined([layer.downsample.reduction])

    def __call__(self, tokens: Tensor) -> Tensor:
        """`(images x tokens, width)` float32, which is overwritten, to the next stage's."""
        together = max(1, ROWS // self.tokens) * self.tokens
        done = [self._some(some) for some in tokens.split(together)]
        return torch.cat(done) if len(done) > 1 else done[0]

    def _some(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            block(tokens)
        if self.down is None:
            return tokens
        norm, product = self.down
        height, width = self.resolution
        # Of each square the left column comes first.
        four = tokens.view(-1, height // 2, 2, width // 2, 2, tokens.shape[1]).permute(0, 1, 3, 4, 2, 5)
        return product(norm(four.reshape(len(tokens) // 4, -1), product.weight.dtype)).float()


class _Block:
    """Attention inside squares of the image, and the feed-forward part."""

    def __init__(self, layer: Any, resolution: tuple[int, int]) -> None:
        inside, side = layer.attention.self, layer.window_size
        layer.set_shift_and_window_size(resolution)
        height, width = resolution
        self.square = side * side
        self.before, self.after = Norm(layer.layernorm_before), Norm(layer.layernorm_after)
        dense = layer.attention.output.dense
        self.heads = Heads(inside.query, inside.key, inside.value, dense, inside.num_attention_heads)
        self.wider, self.narrower = joined([layer.intermediate.dense]), joined([layer.output.dense])

        shift = int(layer.shift_size)
        places = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
        squares = places.view(height // side, side, width // side, side).transpose(1, 2)
        self.order = squares.flatten().to(torch.int32).numpy()
        index = inside.relative_position_index.flatten()
        bias = inside.relative_position_bias_table.data.float()[index].view(self.square, self.square, -1)
        table, kinds = bias.permute(2, 0, 1)[None], torch.zeros(len(self.order) // self.square)
        mask = layer.get_attn_mask(height, width, torch.float32, torch.device("cpu"))
        if mask is not None:  # most squares have the same, those at the edges others
            masks, kinds = torch.unique(mask, dim=0, return_inverse=True)
            table = table + masks[:, None]
        self.table, self.kinds = array(table.contiguous()), kinds.to(torch.int32).numpy()

    def __call__(self, tokens: Tensor) -> None:
        """Change `tokens`, those of whole images `(images x tokens, width)` float32, in place."""
        images = len(tokens) // len(self.order)
        firsts = np.arange(images, dtype=np.int32)[:, None] * np.int32(len(self.order))
        order = (firsts + self.order).ravel()
        kinds = np.tile(self.kinds, images)
        step = max(1, ROWS // self.square)
        for first in range(0, len(kinds), step):
            some = slice(first * self.square, (first + step) * self.square)
            self._some(array(tokens), order[some], kinds[first : first + step])

    def _some(self, x: np.ndarray, order: np.ndarray, kinds: np.ndarray) -> None:
        """The rows `order` of `x`, which fill the squares of `kinds` one after the other."""
        norm, heads = self.before, self.heads
        ready = torch.empty(len(order), x.shape[1], dtype=heads.joint.weight.dtype)
        kernels.norm(x, order, norm.weight, norm.bias, norm.eps, array(ready))
        query, key, value = heads.parts(heads.joint(ready), self.square)
        scores = torch.bmm(query, key.transpose(1, 2))
        grouped = array(scores).reshape(len(kinds), heads.heads, self.square, self.square)
        kernels.soften_windows(grouped, self.table, kinds, heads.depth**-0.5)
        more, norm = heads.merged(scores, value), self.after
        given = x, order, array(more), heads.out.bias, norm.weight, norm.bias, norm.eps
        kernels.add_norm(*given, array(ready), False)
        more = self.narrower(gelu(self.wider(ready), self.wider.bias))
        kernels.add(x, order, array(more), self.narrower.bias)


def supported(encoder: Any) -> bool:
    """Whether a `ClapAudioEncoder` has all that is taken for granted here, as every published one."""
    config, resolutions = encoder.config, encoder.input_resolutions
    return bool(
        config.hidden_act == "gelu"
        and config.flatten_patch_embeds
        and all(side % config.window_size == 0 for sides in resolutions for side in sides)
        and all(side % 2 == 0 for sides in resolutions[:-1] for side in sides)
    )
