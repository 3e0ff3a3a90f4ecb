"""Symmetric contrastive loss on cosine similarities.

JKU, "Enhancing Language-Based Audio Retrieval with Partial Fine-Tuning and Attention Pooling", DCASE 2025,
section 4, eq. 1 and 2: H(p_a, q_a) + H(p_c, q_c), where q_a is a softmax over the recordings of the batch
for each sentence, q_c one over its sentences for each recording, p picks the pair. Cross-entropies are
means over the batch. A batch never holds a recording twice, so the other pairs are negatives; two
recordings with the same sentence are told apart all the same, as the paper's "one positive" says.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.encoders.dual.model import Embedded
from amrctl.losses.base import TermConfig
from amrctl.registry import component


class Config(TermConfig):
    """Nothing to choose: the temperature is the model's."""

    kind: Literal["contrastive"] = "contrastive"


@component("retrieval-losses", "contrastive", Config)
class Contrastive:
    """The term of a batch of B pairs."""

    def __init__(self, config: Config) -> None:
        self.name, self.weight = config.kind, config.weight

    def __call__(self, output: Embedded) -> Tensor:
        """`output.audio` and `output.text` [B, D] of length 1, to a number."""
        logits = output.text @ output.audio.T * output.scale  # sentences x recordings
        target = torch.arange(len(logits), device=logits.device)
        return functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
