"""Temporal endpoint features against the papers' formulas, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from amrctl.data.tef import tef, tef_2d, tef_3d
from amrctl.errors import FeatureError


def test_four_frames_by_hand() -> None:
    assert tef_2d(4).tolist() == [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]
    assert tef_3d(4).tolist() == [[0, 0.75, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.75, 0, 0.25]]
    assert tef_2d(1).tolist() == [[0, 1]]
    assert tef_3d(1).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("frames", [1, 7, 299, 3600])
def test_columns_add_up(frames: int) -> None:
    two, three = tef(frames, 2), tef(frames, 3)
    assert two.dtype == three.dtype == np.float32
    np.testing.assert_array_equal(two[1:, 0], two[:-1, 1])  # a frame begins where the last one ends
    np.testing.assert_array_equal(three[:, 0], two[:, 0])
    np.testing.assert_allclose(three.sum(axis=1), 1, atol=1e-6)  # before, after and the frame are all


def test_no_frames_and_other_widths() -> None:
    assert tef_2d(0).shape == (0, 2)
    assert tef_3d(0).shape == (0, 3)
    with pytest.raises(FeatureError, match="2 or 3 columns, not 4"):
        tef(5, 4)
