"""The folder: same bytes, splits, interruption, what lies there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from amrctl.data.audio import load_mono
from amrctl.data.synth import run, synthesise
from amrctl.data.synth.mix import read_piece, render
from amrctl.data.synth.pool import load_pools
from amrctl.errors import AudioError, ManifestError, OutputError
from tests.data.synth.helpers import RATE, clip_folder, digests, log, planned, settings, tone


def test_same_bytes_for_one_seed_and_any_number_of_workers(tmp_path: Path) -> None:
    made = settings(recordings=6, splits={"train": 0.5, "test": 0.5})
    synthesise(made, tmp_path / "one", workers=1)
    synthesise(made, tmp_path / "two", workers=2)
    synthesise(dataclasses.replace(made, seed=1), tmp_path / "other")
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert set(one) == {
        "synth.json",
        "recordings.jsonl",
        "train.jsonl",
        "test.jsonl",
        *(f"audio/synth-{split}-000{i}.flac" for split in ("train", "test") for i in (1, 2, 3)),
    }
    assert all(one[name] != other[name] for name in one)


def test_splits_share_no_clip_and_no_background(tmp_path: Path) -> None:
    ground = tmp_path / "ground"
    for place in "abcdef":
        (ground / place).mkdir(parents=True)
        soundfile.write(ground / place / "ch01.wav", tone(30, 100), RATE)
    made = settings(
        recordings=30,
        splits={"train": 0.6, "val": 0.2, "test": 0.2},
        backgrounds=str(ground),
        events_per_recording=(3, 5),
        length=(30.0, 30.0),
        max_event=2.0,
    )
    result = synthesise(made, tmp_path / "out")
    clips: dict[str, set[str]] = {}
    grounds: dict[str, set[str]] = {}
    for entry in log(result.folder):
        clips.setdefault(entry["split"], set()).update(event["file"] for event in entry["events"])
        grounds.setdefault(entry["split"], set()).add(entry["background"]["file"])
    for table in (clips, grounds):
        assert set(table) == {"train", "val", "test"}
        assert sum(len(s) for s in table.values()) == len(set().union(*table.values()))
    assert result.recordings == {"train": 18, "val": 6, "test": 6}


def test_split_column_is_obeyed(tmp_path: Path) -> None:
    fixed = {f"{k}{n}.wav": "train" if n < 2 else "test" for k in "xy" for n in range(3)}
    folder = clip_folder(
        tmp_path / "clips",
        {name: (tone(1, 300 + 40 * i), RATE) for i, name in enumerate(fixed)},
        [("file", "caption", "event", "split"), *((f, f"kind {f[0]}", f[0], s) for f, s in fixed.items())],
    )
    choices = {"events": str(folder), "recordings": 8, "events_per_recording": (1, 2)}
    result = synthesise(settings(**choices, splits={"train": 0.5, "test": 0.5}), tmp_path / "out")
    used = {(entry["split"], event["file"]) for entry in log(result.folder) for event in entry["events"]}
    assert len(used) >= 4
    assert all(fixed[file] == split for split, file in used)
    with pytest.raises(ManifestError, match=r"captions.csv:2: has the split 'train'; --splits"):
        synthesise(settings(**choices), tmp_path / "b")
    with pytest.raises(ManifestError, match=r"captions.csv:4: the split 'test' is not in --splits train,val"):
        synthesise(settings(**choices, splits={"train": 0.5, "val": 0.5}), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_backgrounds_own_folders_windows_and_repeats(tmp_path: Path) -> None:
    ground = tmp_path / "ground"
    ramp = np.linspace(-0.5, 0.5, 40 * RATE, dtype=np.float32)
    for split in ("train", "test"):
        (ground / split).mkdir(parents=True)
        soundfile.write(ground / split / f"{split}.wav", ramp if split == "train" else ramp[: 5 * RATE], RATE)
    made = settings(
        backgrounds=str(ground), splits={"train": 0.5, "test": 0.5}, recordings=4, background_level=None
    )
    planner, shelf, plans = planned(made)
    for plan in plans:
        assert plan.background is not None
        assert plan.background.stem == plan.split
        mixed = render(plan, planner, shelf)
        if plan.split == "train":
            first = round(plan.background_start * RATE)
            piece = load_mono(plan.background, RATE)[first : first + 20 * RATE]
            assert np.allclose(mixed.background, piece * np.float32(mixed.scale), atol=1e-4)
        else:
            assert np.abs(mixed.background[15 * RATE :]).max() > 0
    piece = read_piece(ground / "train" / "train.wav", 8_000, 10.0, 2.0)
    assert len(piece) == 16_000
    assert np.allclose(piece[100:-100], ramp[10 * RATE : 12 * RATE : 2][100:-100], atol=1e-3)
    (ground / "val").mkdir()
    with pytest.raises(AudioError, match="no background recordings"):
        load_pools(dataclasses.replace(made, splits={"train": 0.5, "val": 0.5}))


def test_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(recordings=5)
    synthesise(made, tmp_path / "whole")
    out = tmp_path / "out"
    original: Callable[..., Any] = run._Maker.__call__
    calls: list[int] = []

    def dying(self: Any, job: tuple[str, int]) -> Any:
        calls.append(job[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, job)

    monkeypatch.setattr(run._Maker, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        synthesise(made, out)
    assert not (out / "manifest.jsonl").exists()
    with open(out / ".journal.jsonl", "a") as stream:
        stream.write('{"vid": "synth-0004", "spl')  # the kill came in the middle of a line
    (out / "audio" / "synth-0001.flac").write_bytes(b"short")
    (out / "audio" / ".synth-0004.flac.1.tmp").write_bytes(b"rest of a killed worker")
    calls.clear()
    calls.extend([9, 9, 9, 9])
    result = synthesise(made, out)
    assert calls[4:] == [0, 3, 4]
    assert (result.made, result.finished_before) == (3, False)
    assert digests(out) == digests(tmp_path / "whole")

    stamp = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = synthesise(made, out)
    assert again.finished_before
    assert again.queries == result.queries
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamp


def test_what_lies_at_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesise(settings(recordings=2), out)
    with pytest.raises(OutputError, match="other settings or sounds"):
        synthesise(settings(recordings=1), out)
    assert len(list((out / "audio").iterdir())) == 2
    (out / "mine.txt").write_text("keep")
    synthesise(settings(recordings=1, prefix="new"), out, overwrite=True)
    assert [p.name for p in (out / "audio").iterdir()] == ["new-0001.flac"]
    assert (out / "mine.txt").read_text() == "keep"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("x")
    with pytest.raises(OutputError, match="holds no synthesis"):
        synthesise(settings(), foreign, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        synthesise(settings(), out / "mine.txt")


def test_changed_sound_is_noticed(tmp_path: Path) -> None:
    rows = [("file", "caption"), ("a.wav", "a"), ("b.wav", "b")]
    folder = clip_folder(tmp_path / "c", {"a.wav": (tone(1, 300), RATE), "b.wav": (tone(1, 500), RATE)}, rows)
    made = settings(events=str(folder), recordings=1, events_per_recording=(1, 2))
    synthesise(made, tmp_path / "out")
    soundfile.write(folder / "a.wav", tone(1, 301), RATE, subtype="FLOAT")
    with pytest.raises(OutputError, match="other settings or sounds"):
        synthesise(made, tmp_path / "out")
