"""CLAP's official parameters, written out, and what the networks compute from them, in float64 numpy.

Nothing here knows amrctl or transformers' networks: names and shapes are the official files', the sums
are HTSAT's and GPT-2's definitions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import erf

Array = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray]
Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")
# blocks, heads and times the first width, of each of the four stages
STAGES = ((2, 4, 1), (2, 8, 2), (6, 16, 4), (2, 32, 8))


def htsat_shapes(embed: int) -> Shapes:
    """The trained tensors of HTSAT-tiny (`embed` = 96), without the classifier's heads."""
    shapes: Shapes = {f"bn0.{end}": (64,) for end in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"patch_embed.proj.weight": (embed, 1, 4, 4), "patch_embed.proj.bias": (embed,)}
    shapes |= {"patch_embed.norm.weight": (embed,), "patch_embed.norm.bias": (embed,)}
    for stage, (depth, heads, times) in enumerate(STAGES):
        width = embed * times
        for block in range(depth):
            stem = f"layers.{stage}.blocks.{block}"
            shapes |= {
                f"{stem}.norm1.weight": (width,),
                f"{stem}.norm1.bias": (width,),
                f"{stem}.attn.relative_position_bias_table": (225, heads),
                f"{stem}.attn.qkv.weight": (3 * width, width),
                f"{stem}.attn.qkv.bias": (3 * width,),
                f"{stem}.attn.proj.weight": (width, width),
                f"{stem}.attn.proj.bias": (width,),
                f"{stem}.norm2.weight": (width,),
                f"{stem}.norm2.bias": (width,),
                f"{stem}.mlp.fc1.weight": (4 * width, width),
                f"{stem}.mlp.fc1.bias": (4 * width,),
                f"{stem}.mlp.fc2.weight": (width, 4 * width),
                f"{stem}.mlp.fc2.bias": (width,),
            }
        if stage < 3:
            stem = f"layers.{stage}.downsample"
            shapes |= {f"{stem}.reduction.weight": (2 * width, 4 * width)}
            shapes |= {f"{stem}.norm.weight": (4 * width,), f"{stem}.norm.bias": (4 * width,)}
    return shapes | {"norm.weight": (8 * embed,), "norm.bias": (8 * embed,)}


def gpt2_shapes(width: int, vocabulary: int, positions: int) -> Shapes:
    """GPT-2 base (768, 50257, 1024): twelve layers, matrices stored in x out."""
    shapes: Shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (positions, width)}
    for layer in range(12):
        for part, out in (("ln_1", 0), ("attn.c_attn", 3), ("attn.c_proj", 1), ("ln_2", 0), ("mlp.c_fc", 4)):
            stem = f"h.{layer}.{part}"
            shapes[f"{stem}.weight"] = (width, out * width) if out else (width,)
            shapes[f"{stem}.bias"] = (max(out, 1) * width,)
        shapes |= {f"h.{layer}.mlp.c_proj.weight": (4 * width, width), f"h.{layer}.mlp.c_proj.bias": (width,)}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def part(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    """What lies under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def filled(shapes: Shapes, seed: int) -> Arrays:
    """Random tensors under which no part of a network is idle or explodes."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for key, shape in shapes.items():
        values = rng.normal(size=shape)
        if any(name in key.lower() for name in ("norm", "ln_", "bn")):
            values = 0.1 * values + (key.endswith(("weight", "running_var")))
        elif key.endswith("weight") and len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        if key.endswith("running_mean"):
            values = 10 * values - 20
        if key.endswith("running_var"):
            values = 300 * np.abs(values)
        made[key] = np.asarray(values, np.float32)
    return made


def waves(samples: int, n: int = 2) -> npt.NDArray[np.float32]:
    """Sounds that differ: fading noise, then tones that climb, in turn."""
    rng = np.random.default_rng(samples)
    time = np.arange(samples)
    made = rng.normal(size=(n, samples))
    made[::2] *= np.geomspace(1, 1e-3, samples)
    for i in range(1, n, 2):
        made[i] = 0.003 * made[i] + 0.3 * np.sin(time * np.linspace(0.02 * i, 0.2, samples))
    return made.astype(np.float32)


def power(samples: npt.NDArray, size: int, hop: int) -> Array:
    """Power spectra of frames centred on every `hop`-th sample, ends reflected, `(frames, size // 2 + 1)`."""
    padded = np.pad(samples.astype(np.float64), size // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2


def slaney(rate: int, fft: int, bands: int, low: float, high: float) -> Array:
    """Slaney's mel filters of unit area: linear below 1000 Hz, then 27 steps for a factor of 6.4."""

    def hertz(mel: Array) -> Array:
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    def mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000) / np.log(6.4))

    edges = hertz(np.linspace(mel(low), mel(high), bands + 2))
    bins = np.fft.rfftfreq(fft, 1 / rate)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2]))


def decibels(values: npt.NDArray) -> Array:
    return np.asarray(10 * np.log10(np.maximum(values, 1e-10)))


def norm(x: Array, t: Arrays, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.asarray(scaled * t[f"{name}.weight"] + t[f"{name}.bias"])


def linear(x: Array, t: Arrays, name: str) -> Array:
    return np.asarray(x @ t[f"{name}.weight"].astype(np.float64).T + t[f"{name}.bias"])


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def stretch(x: Array, size: int) -> Array:
    """Cubic convolution (a = -0.75) along the first axis, ends kept where they are."""
    place = np.arange(size) * (len(x) - 1) / (size - 1)
    whole = np.floor(place).astype(int)
    out = np.zeros((size, x.shape[1]))
    for tap in (-1, 0, 1, 2):
        d = np.abs(place - (whole + tap))
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0))
        out += weight[:, None] * x[np.clip(whole + tap, 0, len(x) - 1)]
    return out


def attention(x: Array, t: Arrays, name: str, heads: int, shift: int) -> Array:
    """Attention inside windows of 8 x 8 of an image `(h, w, c)`, moved by `shift`."""
    h, w, c = x.shape
    y, z = np.divmod(np.arange(64), 8)
    places = (y[:, None] - y + 7) * 15 + (z[:, None] - z + 7)
    bias = t[f"{name}.relative_position_bias_table"].astype(np.float64)[places].transpose(2, 0, 1)
    moved = np.roll(x, (-shift, -shift), (0, 1))
    # What came around an edge by the move does not belong to its new neighbours.
    edge = [np.where(np.arange(n) < n - shift, 0, 1) if shift else np.zeros(n) for n in (h, w)]
    region = edge[0][:, None] * 2 + edge[1]
    out = np.empty_like(x)
    for top in range(0, h, 8):
        for left in range(0, w, 8):
            here = np.s_[top : top + 8, left : left + 8]
            joint = linear(moved[here].reshape(64, c), t, f"{name}.qkv").reshape(64, 3, heads, c // heads)
            q, k, v = joint.transpose(1, 2, 0, 3)
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(c // heads) + bias
            apart = region[here].reshape(64, 1) != region[here].reshape(1, 64)
            mixed = softmax(np.where(apart, -np.inf, scores)) @ v
            out[here] = linear(mixed.transpose(1, 0, 2).reshape(64, c), t, f"{name}.proj").reshape(8, 8, c)
    return np.roll(out, (shift, shift), (0, 1))


def htsat(t: Arrays, mel: Array) -> Array:
    """Decibels `(frames, 64)` to the mean token after the last norm."""
    x = (mel - t["bn0.running_mean"]) / np.sqrt(t["bn0.running_var"] + 1e-5)
    x = stretch(x * t["bn0.weight"] + t["bn0.bias"], 1024)
    image = x.reshape(4, 256, 64).transpose(0, 2, 1).reshape(256, 256)
    patches = image.reshape(64, 4, 64, 4).transpose(0, 2, 1, 3)
    kernel = t["patch_embed.proj.weight"][:, 0].astype(np.float64)
    tokens = np.einsum("hwij,cij->hwc", patches, kernel) + t["patch_embed.proj.bias"]
    tokens = norm(tokens, t, "patch_embed.norm")
    for stage, (depth, heads, _) in enumerate(STAGES):
        for block in range(depth):
            stem = f"layers.{stage}.blocks.{block}"
            shift = 4 if block % 2 and len(tokens) > 8 else 0
            tokens = tokens + attention(norm(tokens, t, f"{stem}.norm1"), t, f"{stem}.attn", heads, shift)
            inner = gelu(linear(norm(tokens, t, f"{stem}.norm2"), t, f"{stem}.mlp.fc1"))
            tokens = tokens + linear(inner, t, f"{stem}.mlp.fc2")
        if stage < 3:
            four = [tokens[row::2, column::2] for column in (0, 1) for row in (0, 1)]
            merged = norm(np.concatenate(four, axis=2), t, f"layers.{stage}.downsample.norm")
            tokens = merged @ t[f"layers.{stage}.downsample.reduction.weight"].astype(np.float64).T
    return np.asarray(norm(tokens, t, "norm").mean((0, 1)))


def gpt2(t: Arrays, ids: list[int], heads: int) -> Array:
    """Last hidden states `(L, width)` after the final norm."""
    x = (t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]).astype(np.float64)
    length, width = x.shape
    for layer in range(12):
        stem = f"h.{layer}"

        def mapped(y: Array, name: str, stem: str = stem) -> Array:
            return np.asarray(y @ t[f"{stem}.{name}.weight"].astype(np.float64) + t[f"{stem}.{name}.bias"])

        joint = mapped(norm(x, t, f"{stem}.ln_1"), "attn.c_attn").reshape(length, 3, heads, width // heads)
        q, k, v = joint.transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
        mixed = softmax(np.where(np.tri(length, dtype=bool), scores, -np.inf)) @ v
        x = x + mapped(mixed.transpose(1, 0, 2).reshape(length, width), "attn.c_proj")
        inner = mapped(norm(x, t, f"{stem}.ln_2"), "mlp.c_fc")
        inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + mapped(inner, "mlp.c_proj")
    return norm(x, t, "ln_f")


def byte_level(ends: tuple[str, ...], merges: tuple[str, ...], first: tuple[str, ...] = ()) -> dict[str, int]:
    """A vocabulary as GPT-2 and RoBERTa write it: `first`, the 256 bytes ('!' leads), merges, `ends`."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    words = [*first, *letters, *(merge.replace(" ", "") for merge in merges), *ends]
    return {word: i for i, word in enumerate(words)}


def write_vocabulary(folder: Path, vocabulary: dict[str, int], merges: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
