"""What the vision transformers of M2D-CLAP and PaSST share: pre-norm blocks and their official names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer


@dataclass(frozen=True)
class VitSize:
    """Size of a transformer; the defaults are ViT-B, which both families are."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072  # inside the feed-forward part


def vit_blocks(size: VitSize, eps: float) -> nn.ModuleList:
    """`size.depth` pre-norm blocks, [B, N, width] to [B, N, width]; biases everywhere, GELU, no dropout."""
    config = ViTConfig(
        hidden_size=size.width,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
        layer_norm_eps=eps,
    )
    # A block outside its model has no attention chosen for it.
    config._attn_implementation = "sdpa"
    return nn.ModuleList(ViTLayer(config) for _ in range(size.depth))


def block_table(official: str, ours: str, depth: int) -> dict[str, str | tuple[str, ...]]:
    """Official key to our name for `depth` blocks: `OFFICIAL.N...` to `OURS.N...`.

    `attn.qkv` holds query, key and value one below the other; the tuple says that it is cut in three.
    """
    parts = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    table: dict[str, str | tuple[str, ...]] = {}
    for i in range(depth):
        for kind in ("weight", "bias"):
            table[f"{official}.{i}.attn.qkv.{kind}"] = tuple(
                f"{ours}.{i}.attention.{part}_proj.{kind}" for part in "qkv"
            )
            for theirs, name in parts.items():
                table[f"{official}.{i}.{theirs}.{kind}"] = f"{ours}.{i}.{name}.{kind}"
    return table
