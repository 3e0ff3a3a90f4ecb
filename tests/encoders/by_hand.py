"""Spectra and transformer blocks in float64 numpy, from their definitions and official tensor names."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import erf
from torch import Tensor

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def official(listing: str, depth: int, **sizes: int) -> dict[str, tuple[int, ...]]:
    """Key to shape from lines `key size size ...`; a key with `N` stands once for each of `depth` blocks.

    `sizes` replaces a literal width by a small one: `w768=32`.
    """
    swap = {int(name[1:]): size for name, size in sizes.items()}
    shapes = {}
    for line in listing.split("\n"):
        if not line.strip():
            continue
        key, *dims = line.split()
        shape = tuple(swap.get(int(dim), int(dim)) for dim in dims)
        for i in range(depth if ".N." in key else 1):
            shapes[key.replace(".N.", f".{i}.")] = shape
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Values with which every tensor shows in the result.

    What makes up the first tokens is small, so that the constants inside the norms show as well.
    """
    rng = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=rng) * (0.003 if "embed" in key or "token" in key else 0.3)
        for key, shape in shapes.items()
    }


def constant_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """True shapes in a file of a few kilobytes: every tensor is one number, repeated by strides of 0."""
    return {key: torch.tensor(0.01).expand(shape) for key, shape in shapes.items()}


def in_float64(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {key: tensor.double().numpy() for key, tensor in tensors.items()}


def power_spectra(samples: Array, fft: int, window: Array, hop: int) -> Array:
    """|X|^2 by the sum over samples itself, `(frames, fft // 2 + 1)`; ends mirrored, window in the middle."""
    padded = np.pad(samples, fft // 2, mode="reflect")
    left = (fft - len(window)) // 2
    taper = np.zeros(fft)
    taper[left : left + len(window)] = window
    turns = np.outer(np.arange(fft), np.arange(fft // 2 + 1)) / fft
    kernel = taper[:, None] * np.exp(-2j * np.pi * turns)
    frames = [padded[i * hop : i * hop + fft] for i in range(len(samples) // hop + 1)]
    return np.asarray(np.abs(np.stack(frames) @ kernel) ** 2)


def slaney_mel(hertz: float) -> float:
    """Linear up to 1000 Hz (15 mel), then a factor of 6.4 in 27 mel."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def slaney_hertz(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def slaney_triangles(rate: int, fft: int, bands: int, low: float, high: float) -> Array:
    """`(bands, fft // 2 + 1)`: triangles in Hz, of area 1."""
    edges = [slaney_hertz(m) for m in np.linspace(slaney_mel(low), slaney_mel(high), bands + 2)]
    bank = np.zeros((bands, fft // 2 + 1))
    for b in range(bands):
        left, peak, right = edges[b : b + 3]
        for k in range(fft // 2 + 1):
            hertz = k * rate / fft
            height = min((hertz - left) / (peak - left), (right - hertz) / (right - peak))
            bank[b, k] = max(0.0, height) * 2 / (right - left)
    return bank


def kaldi_triangles(rate: int, fft: int, bands: int, low: float, high: float) -> Array:
    """`(bands, fft // 2 + 1)`: triangles on the mel scale, of peak 1, nothing at half the rate."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    step = (mel(high) - mel(low)) / (bands + 1)
    bank = np.zeros((bands, fft // 2 + 1))
    for b in range(bands):
        centre = mel(low) + (b + 1) * step
        for k in range(fft // 2):
            bank[b, k] = max(0.0, 1 - abs(mel(k * rate / fft) - centre) / step)
    return bank


def layer_norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return np.asarray(centred / scale) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.asarray(erf(x / math.sqrt(2))))


def attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """`(N, W)` each, to `(N, W)`: head by head, row by row."""
    width = query.shape[1] // heads
    out = np.zeros_like(query)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for n in range(len(query)):
            score = key[:, part] @ query[n, part] / math.sqrt(width)
            share = np.exp(score - score.max())
            out[n, part] = share / share.sum() @ value[:, part]
    return out


def vit_block(x: Array, weights: Weights, name: str, heads: int, eps: float) -> Array:
    """A pre-norm block with official names (`attn.qkv`, `mlp.fc1`, ...), `(N, W)` to `(N, W)`."""
    query, key, value = np.split(
        linear(layer_norm(x, weights, f"{name}.norm1", eps), weights, f"{name}.attn.qkv"), 3, axis=1
    )
    x = x + linear(attention(query, key, value, heads), weights, f"{name}.attn.proj")
    inner = gelu(linear(layer_norm(x, weights, f"{name}.norm2", eps), weights, f"{name}.mlp.fc1"))
    return x + linear(inner, weights, f"{name}.mlp.fc2")


def patches(image: Array, weights: Weights, name: str, stride: tuple[int, int]) -> Array:
    """`(bands, frames)` to `(rows, columns, W)`: each patch times each kernel."""
    kernel, bias = weights[f"{name}.weight"][:, 0], weights[f"{name}.bias"]
    tall, wide = kernel.shape[1:]
    rows, columns = (image.shape[0] - tall) // stride[0] + 1, (image.shape[1] - wide) // stride[1] + 1
    grid = np.zeros((rows, columns, len(kernel)))
    for r in range(rows):
        for c in range(columns):
            top, left = r * stride[0], c * stride[1]
            grid[r, c] = (kernel * image[top : top + tall, left : left + wide]).sum((1, 2)) + bias
    return grid
