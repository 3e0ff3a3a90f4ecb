"""The grids: published row counts, and windows against a cut of the padded recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl.data.framing import encode_file, frame_count, frames_of
from amrctl.encoders.base import Rows


@dataclass
class Ear:
    """Repeats what it heard, on a grid of choice."""

    sample_rate: int
    window: float
    hop: float
    grid: str
    tail: str
    batch: int = 7
    name: str = "ear"

    def __post_init__(self) -> None:
        self.dim = round(self.window * self.sample_rate)

    def encode(self, windows: Rows) -> Rows:
        assert 1 <= len(windows) <= self.batch
        return windows

    def attributes(self) -> Mapping[str, Any]:
        return {}


@pytest.mark.parametrize("rate", [16000, 32000, 44100, 48000])
@pytest.mark.parametrize(
    ("grid", "tail", "rows"),
    [
        ("plain", "round", {60.0: 60, 299.0: 299, 300.0: 300, 59.7: 60, 0.3: 1}),
        ("plain", "floor", {60.0: 60, 299.0: 299, 300.0: 300, 59.7: 59, 0.3: 1}),
        ("centred", "round", {60.0: 61, 299.0: 300, 300.0: 301, 59.7: 60, 0.3: 1}),
    ],
)
def test_row_counts_of_the_published_recipes(
    rate: int, grid: str, tail: str, rows: Mapping[float, int]
) -> None:
    for seconds, count in rows.items():
        for off in (-1, 0, 1):  # a resampler rounds up or down
            samples = round(seconds * rate) + off
            assert frame_count(samples, rate, 1.0, window=1.0, grid=grid, tail=tail) == count
    assert frame_count(60 * rate, rate, 0.5, window=2.0, grid="plain", tail="floor") == 117
    assert frame_count(60 * rate, rate, 0.5, window=2.0, grid="centred", tail="floor") == 121


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 3000),
    window=st.sampled_from([0.2, 1.0, 1.7]),
    hop=st.sampled_from([0.25, 1 / 3, 1.0, 2.0]),
    block=st.sampled_from([0.11, 1.0, 30.0]),
    grid=st.sampled_from(["floor", "centred"]),
)
def test_windows_are_the_naive_cut(
    tmp_path_factory: pytest.TempPathFactory, samples: int, window: float, hop: float, block: float, grid: str
) -> None:
    rate = 50
    path = tmp_path_factory.getbasetemp() / "framing.wav"
    sound = np.arange(1, samples + 1, dtype=np.float32) / 8192
    soundfile.write(path, sound, rate, subtype="FLOAT")
    ear = Ear(rate, window, hop, "centred" if grid == "centred" else "plain", "floor")
    size = ear.dim
    before = size // 2 if grid == "centred" else 0
    padded = np.concatenate([np.zeros(before, np.float32), sound, np.zeros(10 * rate, np.float32)])
    # Window by window, for as long as one ends (or is centred) in the recording; two samples are forgiven.
    naive = []
    for i in range(samples + 2):
        inside = i * hop * rate if grid == "centred" else i * hop * rate + size
        if i and inside > samples + 2 + 1e-6:
            break
        naive.append(padded[round(i * hop * rate) :][:size])
    frames = encode_file(path, ear, block)
    np.testing.assert_array_equal(frames, np.stack(naive))
    assert len(frames) == frames_of(ear, samples, rate)


def test_a_centred_click_is_in_the_middle_of_its_window(tmp_path: Path) -> None:
    sound = np.zeros(3 * 100, np.float32)
    sound[200] = 0.5
    soundfile.write(tmp_path / "a.wav", sound, 100, subtype="FLOAT")
    rows = encode_file(tmp_path / "a.wav", Ear(100, 1.0, 1.0, "centred", "floor"))
    assert rows.shape == (4, 100)
    assert np.argwhere(rows).tolist() == [[2, 50]]
