"""WavLM on a CPU: the numbers of transformers' `WavLMModel` in evaluation, with less beside its products.

Frames are rows throughout, so that a convolution is one product over rows that overlap in memory. The first
one with its norm, the gated softmax and the norms are a loop each; the sum that runs through the layers is
float32 also where products are bfloat16.

n windows, T frames, H width of the layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrctl.encoders.networks import kernels
from amrctl.encoders.networks.places import Places
from amrctl.encoders.networks.products import Heads, Norm, Product, array, gelu, joined


class WavLM:
    """A `WavLMModel` in evaluation mode on a CPU; it shares the large weights of `network`."""

    def __init__(self, network: Any) -> None:
        encoder, layers = network.encoder, network.encoder.layers
        stable = bool(network.config.do_stable_layer_norm)
        convolutions = list(network.feature_extractor.conv_layers)
        self.first = _First(convolutions[0])
        self.further = [_Convolution(layer) for layer in convolutions[1:]]
        self.before = Norm(network.feature_projection.layer_norm)
        self.project = joined([network.feature_projection.projection])
        self.places = Places(encoder.pos_conv_embed.conv)
        # A layer ends with the norm of its sums, or with that of the next layer's input.
        last = Norm(encoder.layer_norm)
        starts = [Norm(layer.layer_norm) for layer in layers]
        inner = [Norm(layer.final_layer_norm) for layer in layers]
        self.keep = not stable
        self.start = starts[0] if stable else last
        middles, ends = (inner, [*starts[1:], last]) if stable else (starts, inner)
        self.layers = [_Layer(*given, self.keep) for given in zip(layers, middles, ends, strict=True)]
        self.bias = layers[0].attention.compute_bias
        self.tables: dict[int, np.ndarray] = {}

    def __call__(self, samples: Tensor) -> Tensor:
        """`(n, samples)` float32 to the mean over frames of the last hidden state, `(n, H)` float32."""
        frames = torch.cat([self._frames(window) for window in samples])
        n, length = len(samples), len(frames) // len(samples)
        if length not in self.tables:
            self.tables[length] = array(self.bias(length, length).float().contiguous())
        order = np.arange(len(frames), dtype=np.int32)
        x = self.project(self.before(frames, frames.dtype)).float() + torch.from_numpy(self.project.bias)
        places = torch.ops.aten.gelu_(self.places(x.view(n, length, -1))).flatten(0, 1)
        ready = torch.empty(x.shape, dtype=frames.dtype)
        start = self.start
        given = array(x), order, array(places), np.zeros_like(start.bias), start.weight, start.bias, start.eps
        kernels.add_norm(*given, array(ready), self.keep)
        for layer in self.layers:
            keep = self.keep or layer is self.layers[-1]
            layer(x, ready, order, self.tables[length], keep)
        rows: Tensor = x.view(n, length, -1).mean(dim=1)
        return rows

    def _frames(self, samples: Tensor) -> Tensor:
        """One window `(samples,)` to the rows of its frames, of the products' type."""
        rows = self.first(samples)
        for convolution in self.further:
            rows = convolution(rows)
        return rows


class _First:
    """The convolution of the samples, its norm and GELU."""

    def __init__(self, layer: Any) -> None:
        convolution = layer.conv
        self.dtype = convolution.weight.dtype
        self.weight = convolution.weight.data[:, 0].float()
        self.bias = None if convolution.bias is None else convolution.bias.data.float()
        self.taps, self.stride = int(convolution.kernel_size[0]), int(convolution.stride[0])
        self.over_time = isinstance(layer.layer_norm, torch.nn.GroupNorm)
        self.norm = Norm(layer.layer_norm)

    def __call__(self, samples: Tensor) -> Tensor:
        """`(samples,)` to `(T, channels)`."""
        norm = self.norm
        heard = samples.unfold(0, self.taps, self.stride)
        rows = torch.empty(len(heard), len(self.weight), dtype=self.dtype)
        if self.over_time:
            weight, bias = self._normed(heard.double())
            kernels.waves(array(samples), array(weight), array(bias), self.stride, array(rows))
            return rows
        first = torch.zeros(len(self.weight)) if self.bias is None else self.bias
        filters = array(self.weight.t().contiguous())
        given = array(samples), filters, array(first), self.stride, norm.weight, norm.bias, norm.eps
        kernels.waves_norm(*given, array(rows))
        return rows

    def _normed(self, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `(taps, channels)` and bias that give each channel the norm's mean and variance.

        A channel's mean and variance over time follow from those of what the taps hear. A bias of the
        convolution goes with the mean.
        """
        weight = self.weight.double()
        mean = heard.mean(dim=0)
        apart = heard - mean
        spread = apart.t() @ apart / len(heard)
        variance = ((weight @ spread) * weight).sum(dim=1)
        scale = torch.from_numpy(self.norm.weight) / (variance + self.norm.eps).sqrt()
        bias = torch.from_numpy(self.norm.bias) - weight @ mean * scale
        return (weight * scale[:, None]).t().float().contiguous(), bias.float()


class _Convolution:
    """A convolution of rows, the norm that may follow, and GELU."""

    def __init__(self, layer: Any) -> None:
        convolution = layer.conv
        self.taps, self.stride = int(convolution.kernel_size[0]), int(convolution.stride[0])
        weight = convolution.weight.data.transpose(1, 2)
        self.product = Product(weight.flatten(1), None if convolution.bias is None else convolution.bias.data)
        convolution.weight.data = self.product.weight.t().view(weight.shape).transpose(1, 2)
        self.norm = Norm(layer.layer_norm) if hasattr(layer, "layer_norm") else None

    def __call__(self, rows: Tensor) -> Tensor:
        """`(T, channels)` to fewer rows."""
        length, width = rows.shape
        frames = (length - self.taps) // self.stride + 1
        out = self.product(rows.as_strided((frames, self.taps * width), (self.stride * width, 1)))
        if self.norm is None:
            return gelu(out, self.product.bias)
        kernels.norm_gelu(
            array(out), self.product.bias, self.norm.weight, self.norm.bias, self.norm.eps, array(out)
        )
        return out


class _Layer:
    """Attention with a gated bias of places, and the feed-forward part."""

    def __init__(self, layer: Any, middle: Norm, end: Norm, keep: bool) -> None:
        inside, forward = layer.attention, layer.feed_forward
        count = int(inside.num_heads)
        # Two gates of a head: each the sum of four linear maps of what it hears, which is one.
        maps, shifts = inside.gru_rel_pos_linear.weight.data, inside.gru_rel_pos_linear.bias.data
        maps = maps.float().view(2, 4, -1).sum(1)
        apart = torch.block_diag(*[maps] * count)
        shift = shifts.float().view(2, 4).sum(1).repeat(count)
        parts = inside.q_proj, inside.k_proj, inside.v_proj, inside.out_proj
        self.heads = Heads(*parts, count, (apart, shift))
        self.constant = array(inside.gru_rel_pos_const.data.float().flatten())
        self.wider, self.narrower = joined([forward.intermediate_dense]), joined([forward.output_dense])
        self.middle, self.end, self.keep = middle, end, keep

    def __call__(self, x: Tensor, ready: Tensor, order: np.ndarray, table: np.ndarray, keep: bool) -> None:
        """Change `x` (n x T, H) float32, the sum, and `ready`, what its next norm makes of it, in place.

        `table` (heads, T, T); `keep`: after this layer `x` is what was normed.
        """
        length, heads = table.shape[1], self.heads
        both = heads.joint(ready)
        query, key, value = heads.parts(both, length)
        scores = torch.bmm(query, key.transpose(1, 2))
        grouped = array(scores).reshape(-1, heads.heads, length, length)
        scale = heads.depth**-0.5
        kernels.soften_gated(grouped, array(both), heads.joint.bias, self.constant, table, scale)
        self._add(x, ready, order, heads.merged(scores, value), heads.out.bias, self.middle, self.keep)
        more = self.narrower(gelu(self.wider(ready), self.wider.bias))
        self._add(x, ready, order, more, self.narrower.bias, self.end, keep)

    def _add(
        self,
        x: Tensor,
        ready: Tensor,
        order: np.ndarray,
        more: Tensor,
        bias: np.ndarray,
        norm: Norm,
        keep: bool,
    ) -> None:
        """Add `more` and `bias` to the sum, and norm it."""
        given = array(x), order, array(more), bias, norm.weight, norm.bias, norm.eps
        kernels.add_norm(*given, array(ready), keep)


def supported(network: Any) -> bool:
    """Whether a `WavLMModel` has all that is taken for granted here, as every published one."""
    config = network.config
    return bool(
        config.hidden_act == config.feat_extract_activation == "gelu"
        and network.adapter is None
        and config.do_stable_layer_norm == (config.feat_extract_norm == "layer")
    )
