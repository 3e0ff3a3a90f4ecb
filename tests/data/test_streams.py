"""Several feature streams: brought to the main stream's frames, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile, StreamInfo
from amrctl.data.streams import first_centre, load_streams
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


def test_an_encoder_that_centres_its_frames_is_read_where_they_are(tmp_path: Path) -> None:
    """`ms-clap-centred` has frame i around second i, and one frame more: main frames lie between two."""
    path = write_features(
        tmp_path / "f.h5",
        {"main": {"v": rows([0, 0, 0])}, "ms-clap-centred": {"v": rows([0, 1, 2, 5])}},
        {"t": {"q": rows([1])}},
    )
    made = recipe("features.audio=[main, {name: ms-clap-centred, l2: false}]")
    with FeatureFile(path) as file:
        audio, _ = load_streams(file, made, ["v"], ["q"])
        infos = file.streams("audio")
    assert audio[1].packed.get("v")[:, 0].tolist() == [0.5, 1.5, 3.5]
    assert [first_centre(infos[name]) for name in ("main", "ms-clap-centred")] == [0.5, 0.0]


def test_a_window_longer_than_its_hop_is_read_at_its_middle(tmp_path: Path) -> None:
    info = replace(_info(tmp_path), window=4.0, hop=1.0)
    assert first_centre(info) == 2.0
    assert first_centre(replace(info, window=None)) == 0.5


def _info(tmp_path: Path) -> StreamInfo:
    path = write_features(tmp_path / "i.h5", {"main": {"v": rows([0])}}, {"t": {"q": rows([1])}})
    with FeatureFile(path) as file:
        return file.resolve("audio", "main")


@pytest.mark.parametrize(("n", "wanted"), [(4, [5, 6, 7]), (3, [5, 6, 7]), (2, [5, 6, 6])])
def test_one_frame_more_or_less_is_tolerated(tmp_path: Path, n: int, wanted: list[float]) -> None:
    assert aligned(tmp_path, [0, 0, 0], [5.0, 6.0, 7.0, 8.0][:n], {}).tolist() == wanted


def test_streams_of_other_audio_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="recording v: audio stream 'aux' covers 5 s, 'main' covers 3 s"):
        aligned(tmp_path, [0, 0, 0], [1, 2, 3, 4, 5], {})
