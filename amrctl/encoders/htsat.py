"""HTSAT's official parameter names, and their places in transformers' `ClapAudioEncoder`.

HTSAT (Chen et al., "HTS-AT: A Hierarchical Token-Semantic Audio Transformer for Sound Classification and
Detection", ICASSP 2022) is the audio network of MS-CLAP 2023 and of LAION-CLAP. Their files keep the
names of its authors; the network that runs here is transformers', under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from amrctl.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amrctl.encoders.networks.htsat import Htsat

Table = dict[str, str | tuple[str, ...]]

_BOTH = ("weight", "bias")
_POSITIONS = "relative_position_index"
# Heads of the AudioSet classifier; what follows from the sizes; counters of training.
_UNUSED = re.compile(
    rf"(tscam_conv|head)\.(weight|bias)|layers\.\d\.blocks\.\d+\.(attn_mask|attn\.{_POSITIONS})"
    r"|.*\bnum_batches_tracked"
)


def htsat_table(official: str, ours: str, depths: Sequence[int], *, fused: bool = False) -> Table:
    """Official names, which begin with `official`, to names in a `ClapAudioEncoder` that begin with `ours`.

    `depths`: blocks of each stage. `fused`: with the parts that join several crops of a long recording.
    """
    norm = [f".{end}" for end in ("weight", "bias", "running_mean", "running_var")]
    names: Table = {f"bn0{end}": f"batch_norm{end}" for end in norm}
    same = ["patch_embed.proj", "patch_embed.norm", "norm"]
    if fused:
        same.append("patch_embed.mel_conv2d")
        for part, convolutions in (("local_att", (0, 3)), ("global_att", (1, 4))):
            for place in convolutions:
                stem = f"patch_embed.fusion_model.{part}"
                same.append(f"{stem}.{place}")
                names |= {f"{stem}.{place + 1}{end}": f"{stem}.{place + 1}{end}" for end in norm}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            names |= _block(f"layers.{stage}.blocks.{block}")
        if stage < len(depths) - 1:
            down = f"layers.{stage}.downsample"
            names[f"{down}.reduction.weight"] = f"{down}.reduction.weight"
            same.append(f"{down}.norm")
    names |= {f"{stem}.{end}": f"{stem}.{end}" for stem in same for end in _BOTH}
    return {
        official + key: ours + place if isinstance(place, str) else tuple(ours + part for part in place)
        for key, place in names.items()
    }


def _block(stem: str) -> Table:
    """One block; the official file keeps query, key and value in one tensor, in that order."""
    pairs = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    table: Table = {
        f"{stem}.{theirs}.{end}": f"{stem}.{ours}.{end}" for theirs, ours in pairs.items() for end in _BOTH
    }
    attention = f"{stem}.attention.self"
    for end in _BOTH:
        table[f"{stem}.attn.qkv.{end}"] = tuple(
            f"{attention}.{part}.{end}" for part in ("query", "key", "value")
        )
    bias = "relative_position_bias_table"
    table[f"{stem}.attn.{bias}"] = f"{attention}.{bias}"
    return table


def unused(official: str, key: str) -> bool:
    """True for a key of HTSAT that may be in a file and is not read: see `_UNUSED`."""
    return key.startswith(official) and _UNUSED.fullmatch(key.removeprefix(official)) is not None


def computed(module: nn.Module) -> set[str]:
    """Stored buffers that the network fills by itself: places inside a window, counters of training."""
    ends = (_POSITIONS, "num_batches_tracked")
    return {name for name, _ in module.named_buffers() if name.endswith(ends)}


def compare_positions(
    module: nn.Module, tensors: Mapping[str, Tensor], official: str, ours: str, where: str
) -> None:
    """Hold the files' tables of places inside a window, whole numbers or floats, against the network's.

    Files may lack them. Raises `FeatureError` with the official name of one that differs.
    """
    import torch

    inside = dict(module.named_buffers())
    for key, tensor in tensors.items():
        if not (key.startswith(official) and key.endswith(_POSITIONS)):
            continue
        mine = inside[ours + key.removeprefix(official).replace(".attn.", ".attention.self.")]
        if not torch.equal(tensor.to(mine.dtype), mine.to(tensor.device)):
            raise FeatureError(f"{where}: '{key}' numbers the places inside a window in another way")


def rearranged(encoder: nn.Module) -> Htsat | None:
    """A `ClapAudioEncoder` for a CPU, or None where it is not as the published ones are."""
    from amrctl.encoders.networks.htsat import Htsat, supported

    return Htsat(encoder) if supported(encoder) else None
