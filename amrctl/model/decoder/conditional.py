"""The conditional decoder with anchor spans of QD-DETR, and the sockets where hooks plug in.

Source: Conditional DETR (Meng et al. 2021) and DAB-DETR (Liu et al. 2022) as used by QD-DETR
(Moon et al., CVPR 2023): a query is a content state and a reference span; each layer refines the
reference, and the next layer starts from the detached result.

A hook is a component of slot `hooks` that overrides methods of `DecoderHook`: it may change the
queries before the first layer, add to the cross-attention logits, or forbid self-attention pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.model.decoder.grid import grid_spans, require_grid
from amrctl.model.layers.attention import attend, join_heads, padding_mask, require_heads, split_heads
from amrctl.model.layers.dropout import branch_dropout
from amrctl.model.layers.dropped_branch import add_dropped
from amrctl.model.layers.feedforward import MLP, Feedforward, xavier_
from amrctl.model.layers.options import LayerConfig
from amrctl.model.layers.positions import span_positions
from amrctl.model.layers.spans import logit
from amrctl.model.types import Decoded, Dims, Memory, MomentStatistics
from amrctl.registry import component

_FROM_CONTENT = ("qcontent", "kcontent", "v")  # what self-attention makes of the content


class ConditionalConfig(LayerConfig):
    kind: Literal["conditional"] = "conditional"
    layers: int = Field(2, ge=1)
    queries: int = Field(10, ge=1)
    content: Literal["zero", "learned"] = Field("zero", description="content of the queries to begin with")
    widths: tuple[Annotated[float, Field(ge=0, le=100)], ...] | None = Field(
        None,
        min_length=1,
        description="percentiles of the training moments' widths, from which reference spans start on "
        "an even grid of places (Yokohama, 3.4); null: random ones",
    )


@dataclass
class Queries:
    """The decoder's queries before a layer."""

    content: Tensor  # [B, N, H]
    reference: Tensor  # [B, N, 2] in 0..1
    self_mask: Tensor | None = None  # [B or 1, 1, N, N] bool, True = may be seen
    extra: int = 0  # the last so many are there for a hook's own loss (`Decoded.extra`)


class DecoderHook(nn.Module):
    """A change to the decoder that a paper proposes; the base class changes nothing."""

    def start(self, queries: Queries, memory: Memory, batch: Batch) -> Queries:
        """Change the queries before the first layer, or add some after them (see `Queries.extra`).

        What the hook's own loss needs goes into `memory.extras`. Only training batches have targets.
        """
        return queries

    def bias(self, queries: Queries, memory: Memory, layer: int) -> Tensor | None:
        """Return what is added to the cross-attention logits of `layer`, or None.

        Broadcastable to [B, heads, N, T].
        """
        return None


def _heads_concatenated(a: Tensor, b: Tensor, heads: int) -> Tensor:
    return torch.cat((split_heads(a, heads), split_heads(b, heads)), dim=-1)


class _OutProjection(nn.Module):
    """Attention that only owns its output projection (the inputs are projected by the layer)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.out_proj(join_heads(attend(q, k, v, mask, self.dropout, self.training)))
        return out


class ConditionalLayer(nn.Module):
    """Self-attention among queries, cross-attention to the audio, feed-forward; post-norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        dropout: float,
        first: bool,
        drop_path: float | None = None,
    ) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads, self.first = heads, first
        self.sa_qcontent_proj = nn.Linear(width, width)
        self.sa_qpos_proj = nn.Linear(width, width)
        self.sa_kcontent_proj = nn.Linear(width, width)
        self.sa_kpos_proj = nn.Linear(width, width)
        self.sa_v_proj = nn.Linear(width, width)
        self.ca_qcontent_proj = nn.Linear(width, width)
        self.ca_kcontent_proj = nn.Linear(width, width)
        self.ca_kpos_proj = nn.Linear(width, width)
        self.ca_v_proj = nn.Linear(width, width)
        self.ca_qpos_sine_proj = nn.Linear(width, width)
        if first:
            self.ca_qpos_proj = nn.Linear(width, width)
        self.self_attn = _OutProjection(width, dropout)
        self.cross_attn = _OutProjection(width, dropout)
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = branch_dropout(dropout, drop_path)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        query_sine: Tensor,
        memory: Memory,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
    ) -> Tensor:
        """`x`, `query_position`, `query_sine` [B, N, H]; masks as in `attend`; returns [B, N, H]."""
        q = self.sa_qcontent_proj(x) + self.sa_qpos_proj(query_position)
        k = self.sa_kcontent_proj(x) + self.sa_kpos_proj(query_position)
        v = self.sa_v_proj(x)
        heads = self.heads
        attended = self.self_attn(
            split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), self_mask
        )
        x = self.norm1(add_dropped(x, attended, self.dropout))

        q = self.ca_qcontent_proj(x)
        k = self.ca_kcontent_proj(memory.audio)
        v = self.ca_v_proj(memory.audio)
        k_position = self.ca_kpos_proj(memory.audio_position)
        if self.first:
            q = q + self.ca_qpos_proj(query_position)
            k = k + k_position
        attended = self.cross_attn(
            _heads_concatenated(q, self.ca_qpos_sine_proj(query_sine), heads),
            _heads_concatenated(k, k_position, heads),
            split_heads(v, heads),
            cross_mask,
        )
        x = self.norm2(add_dropped(x, attended, self.dropout))
        out: Tensor = self.norm3(add_dropped(x, self.feedforward(x), self.dropout))
        return out


@component("decoder", "conditional", ConditionalConfig)
class ConditionalDecoder(nn.Module):
    """`layers` conditional layers over learned reference spans; the content starts at zero or is learned."""

    def __init__(self, config: ConditionalConfig, dims: Dims, hooks: dict[str, DecoderHook]) -> None:
        super().__init__()
        width = dims.hidden
        inner = config.inner_width(width)
        self.hooks = nn.ModuleDict(hooks)
        self.layers = nn.ModuleList(
            ConditionalLayer(width, config.heads, inner, config.dropout, i == 0, config.drop_path)
            for i in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.query_scale = MLP(width, width, width, 2)
        self.ref_point_head = MLP(width, width, width, 2)
        self.ref_anchor_head = MLP(width, width, 1, 2)
        self.bbox_embed = MLP(width, width, 2, 3)
        for part in (
            self.layers,
            self.query_scale,
            self.ref_point_head,
            self.ref_anchor_head,
            self.bbox_embed,
        ):
            xavier_(part)
        nn.init.zeros_(self.bbox_embed.last.bias)
        self.query_embed = nn.Embedding(config.queries, 2)
        self.content_embed: nn.Embedding | None = None
        if config.content == "learned":
            self.content_embed = nn.Embedding(config.queries, width)
        else:
            # the content is zero before the first layer, so these get an exactly zero gradient
            self.zero_gradient = tuple(f"layers.0.sa_{name}_proj.weight" for name in _FROM_CONTENT)
        self.widths = config.widths
        if config.widths is not None:
            require_grid(config.queries, len(config.widths))
            self.restarts = ("query_embed.weight",)

    def start_from(self, moments: MomentStatistics) -> None:
        """With `widths`, put the references on the grid that fits the training moments."""
        if self.widths is not None:
            spans = grid_spans(moments.widths, self.widths, self.query_embed.num_embeddings)
            with torch.no_grad():
                self.query_embed.weight.copy_(logit(spans))

    def forward(self, memory: Memory, batch: Batch) -> Decoded:
        size, _, width = memory.audio.shape
        reference = self.query_embed.weight.sigmoid().expand(size, -1, -1)
        if self.content_embed is None:
            content = reference.new_zeros(*reference.shape[:2], width, dtype=memory.audio.dtype)
        else:
            content = self.content_embed.weight.to(memory.audio.dtype).expand(size, -1, -1)
        queries = Queries(content, reference)
        for hook in self._hooks():
            queries = hook.start(queries, memory, batch)
        seen = padding_mask(memory.audio_mask)
        states, references = [], []
        for i, layer in enumerate(self.layers):
            references.append(queries.reference)
            start = queries.reference.detach() if i else queries.reference
            sine = span_positions(start, width)
            position = self.ref_point_head(sine)
            scale = self.query_scale(queries.content) if i else 1.0
            modulated = self.ref_anchor_head(queries.content).sigmoid() / start[..., 1:]
            x = layer(
                queries.content,
                position,
                sine * scale * modulated,
                memory,
                queries.self_mask,
                self._cross_mask(seen, queries, memory, i),
            )
            states.append(self.norm(x))
            if i < len(self.layers) - 1:
                # the head of the next layer adds to this reference with its gradient; the layer
                # itself looks at the detached value
                refined = (self.bbox_embed(x).float() + logit(start)).sigmoid()
                queries = replace(queries, content=x, reference=refined)
        return _apart(torch.stack(states), torch.stack(references), queries.extra)

    def _hooks(self) -> list[DecoderHook]:
        return [hook for hook in self.hooks.values() if isinstance(hook, DecoderHook)]

    def _cross_mask(self, seen: Tensor | None, queries: Queries, memory: Memory, layer: int) -> Tensor | None:
        biases = [b for hook in self._hooks() if (b := hook.bias(queries, memory, layer)) is not None]
        if not biases:
            return seen
        total = biases[0]
        for more in biases[1:]:
            total = total + more
        return total if seen is None else torch.where(seen, total, -math.inf)


def _apart(states: Tensor, references: Tensor, extra: int) -> Decoded:
    """`[S, B, N, ...]` each → the decoder's own queries, and apart from them the last `extra`."""
    if not extra:
        return Decoded(states, references)
    more = Decoded(states[:, :, -extra:], references[:, :, -extra:])
    return Decoded(states[:, :, :-extra], references[:, :, :-extra], more)
