"""`amrctl synth` through the real entry point: files, answers, faults, a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amrctl.data.audio import find_audio, probe
from amrctl.data.manifest import read_manifest
from tests.conftest import Cli


def test_embedded_bank_to_manifests(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "synth",
        "--events",
        "builtin",
        "--recordings",
        6,
        "--length",
        "20-25",
        "--out",
        out,
        "--workers",
        1,
    ]
    words += [
        "--splits",
        "train=0.5,test=0.5",
        "--events-per-recording",
        "3-4",
        "--max-event",
        3,
        "--snap",
        "--json",
    ]
    done = cli(*words)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["recordings"] == {"train": 3, "test": 3}
    for split in ("train", "test"):
        manifest = read_manifest(out / f"{split}.jsonl")
        assert manifest.whole_seconds
        assert len(manifest) == told["queries"][split]
        for vid, path in find_audio(out / "audio", manifest.recordings).items():
            rate, channels, frames = probe(path)
            assert (rate, channels) == (16_000, 1)
            assert frames == manifest.recordings[vid] * rate
            assert 20 <= manifest.recordings[vid] <= 25
            assert 3 <= sum(query.vid == vid for query in manifest) <= 4
    again = cli(*words)
    assert again.code == 0
    assert json.loads(again.out) == {**told, "made": 0}
    assert "nothing to do" in again.err
    other = cli(*words, "--seed", 1)
    assert (other.code, other.out) == (2, "")
    assert other.err.count("\n") == 1
    assert "choose another --out or add --overwrite" in other.err
    assert cli(*words, "--seed", 1, "--overwrite", "--quiet").code == 0


def test_user_folder_with_preset(cli: Cli, tmp_path: Path) -> None:
    events, ground = tmp_path / "events", tmp_path / "ground"
    events.mkdir()
    ground.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(ground / "walk.wav", rng.normal(0, 0.01, 8_000 * 70), 8_000)
    with open(events / "c.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "caption"])
        for n in range(6):
            soundfile.write(events / f"{n}.ogg", rng.normal(0, 0.1, 44_100), 44_100)
            rows.writerow([f"{n}.ogg", f"sound number {n}"])
    done = cli(
        "synth", "--events", events, "--captions", events / "c.csv", "--backgrounds", ground,
        "--out", tmp_path / "o", "--preset", "five-minute", "--recordings", 3, "--length", 30,
        "--rate", 16_000, "--splits", "all=1", "--queries", 10, "--workers", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = read_manifest(tmp_path / "o" / "all.jsonl")
    assert len(manifest) == 10
    assert "all.jsonl" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--events", "nowhere"], "nowhere is not a folder; --events names the folder with event clips"),
        (["--events", "builtin", "--length", "1-2-3"], "--length 1-2-3: write a number or a range"),
        (["--events", "builtin", "--splits", "a=0.5"], "the fractions sum to 0.5, not to 1"),
        (["--events", "builtin", "--preset", "clotho"], "did you mean 'clotho-moment'"),
        (["--events", "builtin", "--noise", "red"], "no noise is called 'red'"),
        (["--events", "builtin", "--recordings", "0"], "--recordings must be at least 1, not 0"),
        (["--events", "builtin", "--exclude", "x.csv"], "--exclude does not go with --events builtin"),
        (["--events", "."], "captions.csv: cannot read"),
        (
            ["--events", "builtin", "--length", "2", "--min-event", "2"],
            "do not fit into 2 s",
        ),
    ],
)
def test_faults_are_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("synth", *words, "--out", "out", "--workers", 1)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("*.jsonl")) or not (tmp_path / "out" / "manifest.jsonl").exists()


def test_killed_command_goes_on_to_the_same_files(cli: Cli, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        words = "synth --events builtin --recordings 40 --max-event 3 --workers 2 --out"
        return [*words.split(), str(out)]

    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "amrctl", *command(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    journal = out / ".journal.jsonl"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and (not journal.exists() or journal.stat().st_size < 500):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(list((out / "audio").glob("*.flac")))
    assert 0 < before < 40
    assert not (out / "manifest.jsonl").exists()
    for folder in (out, tmp_path / "whole"):
        assert cli(*command(folder), "--workers", 1).code == 0
    names = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()
    )
    assert len(names) == 43
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
