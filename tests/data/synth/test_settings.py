"""Choices and sounds that cannot be used, and how choices are spelt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amrctl.data.synth import PRESETS, synthesise, with_preset
from amrctl.data.synth.settings import parse_queries, parse_range, parse_shares
from amrctl.errors import AmrctlError, AudioError, ManifestError
from tests.data.synth.helpers import RATE, clip_folder, log, settings, tone


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"splits": {"a": 0.5, "b": 0.6}}, r"sum to 1\.1, not to 1"),
        ({"splits": {"../a": 1.0}}, "cannot be the name of a split"),
        ({"splits": {"recordings": 1.0}}, "cannot be the name of a split"),
        ({"splits": {"a": 0.9, "b": 0.1}, "recordings": 3}, "split 'b' gets none"),
        ({"queries": {"": 99}}, r"99 queries in 3 recordings need 33 events each, outside .* 1-4"),
        ({"queries": {"x": 9}}, "no split is called 'x'"),
        ({"events_per_recording": (5, 40)}, "up to 40 different events and there are 20"),
        ({"events_per_recording": (3, 2)}, "3 to 2 is no range"),
        ({"snr": (float("nan"), 3.0)}, "is no range"),
        ({"noise": ("pinc",)}, "did you mean 'pink'"),
        ({"trim": "blocs"}, "did you mean 'blocks'"),
        ({"min_event": 9.0}, "--min-event 9 is more than --max-event 4"),
        ({"rate": 8_000}, "--rate must be between 16000"),
        ({"prefix": "a/b"}, "--prefix 'a/b'"),
        (
            {"length": (3.0, 3.0), "min_event": 2.0, "events_per_recording": (4, 4)},
            "4 events do not fit into 3 s",
        ),
        ({"events": "nowhere"}, "nowhere is not a folder"),
        ({"backgrounds": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_choices_that_cannot_be(tmp_path: Path, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AmrctlError, match=message) as caught:
        synthesise(settings(**choices), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_sounds_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [("file", "caption"), ("a.wav", "a"), ("b.wav", "b")]
    good = (tone(1, 300), RATE)
    one = {"events_per_recording": (2, 2), "recordings": 1}
    missing = clip_folder(tmp_path / "m", {"a.wav": good}, rows)
    with pytest.raises(ManifestError, match=r"captions.csv:3: no sound file 'b.wav'"):
        synthesise(settings(events=str(missing), **one), tmp_path / "out")
    skipping = settings(events=str(missing), skip_bad=True, recordings=1, events_per_recording=(1, 1))
    assert synthesise(skipping, tmp_path / "skipped").queries == {"": 1}
    empty = clip_folder(tmp_path / "e", {"a.wav": good, "b.wav": (tone(0, 1), RATE)}, rows)
    with pytest.raises(AudioError, match=r"b.wav: the sound file is empty"):
        synthesise(settings(events=str(empty), **one), tmp_path / "out")
    silent = clip_folder(tmp_path / "s", {"a.wav": good, "b.wav": (0 * tone(1, 1), RATE)}, rows)
    with pytest.raises(AudioError, match=r"b.wav: holds only silence"):
        synthesise(settings(events=str(silent), **one), tmp_path / "out")
    broken = clip_folder(tmp_path / "b", {"a.wav": good}, rows)
    (broken / "b.wav").write_bytes(b"RIFFnonsense")
    with pytest.raises(AudioError, match=r"b.wav: not a readable sound file"):
        synthesise(settings(events=str(broken), **one), tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    # every clip that cannot be used, at once
    rows = [("file", "caption"), *((f"{name}.wav", name) for name in "abcd")]
    mixed = clip_folder(tmp_path / "x", {"a.wav": good, "b.wav": (0 * tone(1, 1), RATE)}, rows)
    (mixed / "c.wav").write_bytes(b"RIFFnonsense")
    skipping = settings(events=str(mixed), skip_bad=True, recordings=5, events_per_recording=(1, 1))
    result = synthesise(skipping, tmp_path / "unbroken")
    assert {event["file"] for entry in log(result.folder) for event in entry["events"]} == {"a.wav"}


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("60", (60, 60)),
        ("30-90", (30, 90)),
        ("-5-10", (-5, 10)),
        ("-25--15", (-25, -15)),
        (".5,1.5", (0.5, 1.5)),
    ],
)
def test_ranges(text: str, pair: tuple[float, float]) -> None:
    assert parse_range("--x", text) == pair


def test_spelling_faults() -> None:
    for text, whole in (("a", False), ("1-2-3", False), ("1.5", True), ("", False)):
        with pytest.raises(AmrctlError, match="--x"):
            parse_range("--x", text, whole=whole)
    for text in ("train", "train=", "=1", "a=1,a=1", "a=nan"):
        with pytest.raises(AmrctlError, match="--splits"):
            parse_shares("--splits", text)
    assert parse_queries("12") == {"": 12}
    assert parse_queries("a=1,b=2") == {"a": 1, "b": 2}
    with pytest.raises(AmrctlError, match=r"2\.5 is not a whole number"):
        parse_queries("a=2.5")
    with pytest.raises(AmrctlError, match="did you mean 'five-minute'"):
        with_preset("five-minutes", {"events": "builtin"})
    for name in ("repeats", "overlap", "queries"):
        with pytest.raises(AmrctlError, match="does not go with the preset clotho-moment"):
            with_preset("clotho-moment", {"events": "builtin", name: (1, 1)})
    assert with_preset("clotho-moment", {"events": "builtin", "snr": (0.0, 5.0)}).levels == "snr"
    assert set(PRESETS) == {"clotho-moment", "five-minute"}
