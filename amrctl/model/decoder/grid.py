"""Reference spans on an even grid, as wide as the training moments are.

Source: Yokohama, DCASE 2026 Task 6, section 3.4: 3 x N position queries at N places, three to each, with
the 15th, 50th and 85th percentile of the widths of all training moments; again at fine-tuning, from the
fine-tuning data. Ours: place i of N is (i + 0.5) / N, widths are shares of the recording, percentiles are
linear between order statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amrctl.errors import RecipeError
from amrctl.spans import Floats


def require_grid(queries: int, widths: int) -> None:
    """Raise `RecipeError` when `queries` are not a whole number of places with `widths` widths each."""
    if queries % widths:
        raise RecipeError(
            f"model.decoder.widths: {queries} queries are not a multiple of {widths} widths; change "
            "model.decoder.queries"
        )


def grid_spans(moments: Floats, percentiles: Sequence[float], queries: int) -> Tensor:
    """(centre, width) of every query, [queries, 2] float32; the widths of a place stand side by side.

    `moments` [M]: widths of the training moments in 0..1, one at least.
    """
    widths = np.percentile(moments, percentiles)
    places = queries // len(widths)
    centres = (np.arange(places) + 0.5) / places
    grid = np.stack((np.repeat(centres, len(widths)), np.tile(widths, places)), axis=1)
    return torch.from_numpy(grid).float()
