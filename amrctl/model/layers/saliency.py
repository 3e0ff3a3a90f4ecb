"""What teaches a curve over frames: hinge, rank contrast and negative pairs, row by row.

Source: Moment-DETR and QD-DETR (Moon et al., CVPR 2023, section 3.4) as released for DCASE 2026
Task 6: labels are 0/1, so that one of the twelve rank levels is active while the sum is still
divided by 12, and the negative-pair part is a sum over frames. CG-DETR (Moon et al., 2023) uses them for
its attention too, and counts pairs with and without a mismatched sentence apart (`apart`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Targets
from amrctl.model.auxiliary.negative_pairs import NAME, ROWS
from amrctl.model.types import Output

_LEVELS = 12
_TEMPERATURE = 0.5


def hinge(curve: Tensor, positives: Tensor, negatives: Tensor, pair_mask: Tensor, margin: float) -> Tensor:
    """Sum over drawn pairs of max(0, margin + outside - inside), mean over rows. Scalar."""
    gap = margin + curve.gather(1, negatives) - curve.gather(1, positives)
    return (gap.clamp(min=0) * pair_mask[:, None]).sum() / len(curve)


def rank_rows(
    curve: Tensor, mismatched: Tensor | None, inside: Tensor, real: Tensor, mismatched_real: Tensor
) -> Tensor:
    """Softmax contrast of inside frames against all frames, the mismatched pair's included; [B].

    `curve`, `inside`, `real` [B, T]; `mismatched` [B, T] with its own mask. 0 for a row without inside.
    """
    scores, seen = curve, real
    if mismatched is not None:
        scores = torch.cat((curve, mismatched), dim=1)
        seen = torch.cat((real, mismatched_real), dim=1)
    scores = scores.masked_fill(~seen, -1000.0) / _TEMPERATURE
    scores = scores - scores.max(dim=1, keepdim=True).values.detach()
    log_p = scores - torch.log(scores.exp().sum(1, keepdim=True) + 1e-6)
    per_row = -(log_p[:, : curve.shape[1]] * inside).sum(1) / (inside.sum(1) + 1e-6)
    return per_row * (inside.sum(1) > 0) / _LEVELS


def rank(
    curve: Tensor, mismatched: Tensor | None, inside: Tensor, real: Tensor, mismatched_real: Tensor
) -> Tensor:
    """Mean of `rank_rows` over the rows. Scalar."""
    return rank_rows(curve, mismatched, inside, real, mismatched_real).mean()


def negative_rows(mismatched: Tensor, real: Tensor) -> Tensor:
    """-log(1 - sigmoid(score)), summed over real frames; [B]."""
    # masked before too: what stands on padding must not reach the gradient, not even as NaN x 0
    cost = functional.softplus(mismatched.masked_fill(~real, 0.0))
    return cost.masked_fill(~real, 0.0).sum(1)


def negative_pair(mismatched: Tensor, real: Tensor) -> Tensor:
    """Mean of `negative_rows` over the rows. Scalar."""
    return negative_rows(mismatched, real).mean()


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the values that count, 0 without any; both of one shape. Scalar."""
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def apart(rows: Tensor, paired: Tensor) -> Tensor:
    """Mean over the rows with a mismatched pair plus mean over those without one. Scalar."""
    return mean_of(rows, paired) + mean_of(rows, ~paired)


def mismatched(output: Output, targets: Targets, name: str = "") -> tuple[Tensor | None, Tensor]:
    """What the mismatched pair has in place of the extra `name` ("": its saliency), and which rows have one.

    ([B, ...] float32, [B] bool); None, and no row, without the part 'negative-pairs'.
    """
    found = output.extras.get(f"{NAME}.{name}" if name else NAME)
    there = targets.negative_row >= 0
    if found is None:
        return None, torch.zeros_like(there)
    rows = output.extras.get(ROWS)
    return found.float(), there if rows is None else rows > 0
