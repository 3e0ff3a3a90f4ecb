"""Several feature streams: brought to the main stream's frames, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.streams import load_streams
from amrctl.errors import FeatureError
from tests.small import manifest, query, recipe, write_features


def rows(values: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]


def aligned(
    tmp_path: Path, main: Sequence[float], other: Sequence[float], hops: Mapping[str, float]
) -> Tensor:
    path = write_features(
        tmp_path / "f.h5",
        {"main": {"v": rows(main), "w": rows(main)}, "aux": {"w": rows(other), "v": rows(other)}},
        {"t": {"q": rows([1, 2])}, "u": {"q": rows([1, 2, 3])}},
        hops=hops,
    )
    made = recipe("features.audio=[{name: main, l2: false}, {name: aux, l2: false}]", "features.text=[t, u]")
    with FeatureFile(path) as file:
        audio, text = load_streams(file, made, ["v"], ["q"])
        moments = Moments(manifest(query("q", "v", len(main), [(0, 1)])), file, made, training=True)
    assert [len(s.packed.rows) for s in text] == [2, 3]
    assert [len(s.packed.rows) for s in audio] == [len(main)] * 2
    (b,) = moments.epoch(0, 0)
    assert b.audio[0].shape == b.audio[1].shape == (1, len(main), 1)
    assert [t.shape[1] for t in b.text] == [2, 3]
    assert moments.audio_dims == (1, 1)
    assert [s["name"] for s in moments.streams["audio"]] == ["main", "aux"]
    return b.audio[1][0, :, 0]


def test_streams_are_brought_to_the_main_streams_frames(tmp_path: Path) -> None:
    # 0.5 s frames of a ramp in seconds (centres 0.25, 0.75, ...) at the centres 0.5, 1.5, 2.5
    got = aligned(tmp_path, [0, 0, 0], [0.25, 0.75, 1.25, 1.75, 2.25, 2.75], {"aux": 0.5})
    torch.testing.assert_close(got, torch.tensor([0.5, 1.5, 2.5]))


def test_coarser_streams_are_interpolated(tmp_path: Path) -> None:
    got = aligned(tmp_path, [0, 0, 0, 0], [1.0, 3.0], {"aux": 2.0})  # centres at 1 and 3
    torch.testing.assert_close(got, torch.tensor([1.0, 1.5, 2.5, 3.0]))  # ends hold


@pytest.mark.parametrize(("n", "wanted"), [(4, [5, 6, 7]), (3, [5, 6, 7]), (2, [5, 6, 6])])
def test_one_frame_more_or_less_is_tolerated(tmp_path: Path, n: int, wanted: list[float]) -> None:
    assert aligned(tmp_path, [0, 0, 0], [5.0, 6.0, 7.0, 8.0][:n], {}).tolist() == wanted


def test_streams_of_other_audio_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="recording v: audio stream 'aux' covers 5 s, 'main' covers 3 s"):
        aligned(tmp_path, [0, 0, 0], [1, 2, 3, 4, 5], {})
