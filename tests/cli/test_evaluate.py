"""`amrctl evaluate` through the real command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amrctl import provenance
from amrctl.cli._argv import spread
from tests.conftest import Cli

GOLDEN = Path(__file__).parents[1] / "evaluation" / "golden"
P, M = GOLDEN / "decimals.predictions.jsonl", GOLDEN / "decimals.manifest.jsonl"


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    """The same queries, every best window replaced by a wrong one."""
    rows = [json.loads(line) for line in P.read_text().splitlines()]
    for row in rows:
        row["pred_relevant_windows"][0][:2] = [0.001, 0.002]
    path = tmp_path / "variant.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_holds_the_official_blocks(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "new" / "metrics.json"
    done = cli("evaluate", P, "--test", M, "--json", "--out", out)
    assert done.code == 0
    printed = json.loads(done.out)
    official = json.loads((GOLDEN / "decimals.official.json").read_text())
    assert json.dumps({"brief": printed["brief"], "full": printed["full"]}) == json.dumps(official)
    assert json.loads(out.read_text()) == printed


def test_table_on_a_narrow_terminal(cli: Cli, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("evaluate", P, variant, "--test", M, "--against", variant)
    assert done.code == 0
    assert "mean of 2 files on decimals.manifest.jsonl: 40 queries, 20 recordings" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in done.out.splitlines() if "│" in line]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["R1@0.7"][0] == "13.75"  # of 27.50 and 0.00; this row is that of the last table
    assert rows["R1@0.7"][1:3] == ["0.00", "+13.75"]
    assert rows["10-30 s"][0].isdigit()
    assert rows["R1@0.7"][-1] == "beats"


def test_quiet_prints_nothing(cli: Cli) -> None:
    done = cli("evaluate", P, "--test", M, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_same_seed_same_bytes(cli: Cli) -> None:
    first, second, other = (
        json.loads(cli("evaluate", P, "--test", M, "--json", "--seed", seed).out) for seed in (1, 1, 2)
    )
    assert first["metrics"] == second["metrics"]
    assert first["strata"] == second["strata"]
    assert first["metrics"] != other["metrics"]


def test_several_files_against_several(cli: Cli, variant: Path) -> None:
    in_a_row = cli("evaluate", P, P, "--test", M, "--against", variant, P, "--json")
    repeated = cli("evaluate", P, P, "--against", variant, "--against", P, "--test", M, "--json")
    told = json.loads(in_a_row.out)
    assert [len(told["files"]), len(told["against"]["files"])] == [2, 2]
    assert told["against"]["metrics"] == json.loads(repeated.out)["against"]["metrics"]
    assert told["against"]["metrics"]["R1@0.5"]["difference"] == pytest.approx(65.0 / 2)
    assert told["against"]["metrics"]["R1@0.5"]["beats"] is True
    assert "hold the same bytes" in in_a_row.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("evaluate a b --against c d --test m", "evaluate a b --against c --against d --test m"),
        ("evaluate a --against=c d", "evaluate a --against=c --against d"),
        ("evaluate a --against c --against d e", "evaluate a --against c --against d --against e"),
        ("distill --teacher a b --train t -q", "distill --teacher a --teacher b --train t -q"),
        ("evaluate --against c -- a --against b d", "evaluate --against c -- a --against b d"),
        ("evaluate a --test m", "evaluate a --test m"),
        ("", ""),
    ],
)
def test_values_in_a_row(typed: str, meant: str) -> None:
    assert spread(typed.split()) == meant.split()


def test_existing_out_is_refused_first(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    out.write_text("mine")
    done = cli("evaluate", tmp_path / "absent.jsonl", "--test", M, "--out", out)
    assert done.code == 2
    assert done.err == f"amrctl: {out} exists; choose another --out or add --overwrite\n"
    assert out.read_text() == "mine"
    assert cli("evaluate", P, "--test", M, "--out", out, "--overwrite").code == 0
    assert json.loads(out.read_text())["brief"]["MR-full-mAP"] == 27.61


def test_other_queries_are_an_error_and_partial_goes_on(cli: Cli, tmp_path: Path) -> None:
    part = tmp_path / "part.jsonl"
    lines = P.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[3:]))
    done = cli("evaluate", part, "--test", M)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    first = [json.loads(line)["qid"] for line in M.read_text().splitlines()]
    gone = {json.loads(line)["qid"] for line in lines[:3]}
    named = ", ".join(qid for qid in first if qid in gone)
    assert f"{part} does not answer {M}: 3 of 40 queries have no prediction (first: {named})" in done.err
    assert "--partial" in done.err
    going_on = cli("evaluate", part, "--test", M, "--partial", "--json")
    assert going_on.code == 0
    assert json.loads(going_on.out)["reference"]["queries"] == 37
    assert "scored on 37 of 40 queries" in going_on.err


def test_challenge_form_without_scores(cli: Cli, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in P.read_text().splitlines()]
    for row in rows:
        row["pred_relevant_windows"] = [w[:2] for w in row["pred_relevant_windows"]]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("evaluate", bare, "--test", M, "--json")
    # sorted lists: places rank as the scores did
    assert (
        json.loads(done.out)["brief"] == json.loads((GOLDEN / "decimals.official.json").read_text())["brief"]
    )
    assert "scores are 1 - i/n by place in the list" in done.err


def test_blind_manifest_is_named(cli: Cli, tmp_path: Path) -> None:
    blind = tmp_path / "blind.jsonl"
    rows = [json.loads(line) for line in M.read_text().splitlines()]
    blind.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "relevant_windows"}) + "\n" for row in rows)
    )
    done = cli("evaluate", P, "--test", blind)
    assert done.code == 2
    assert f"{blind}:1" in done.err
    assert "relevant_windows" in done.err


def test_scoring_on_training_data_is_said_loudly(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    shutil.copy(P, file)
    seen = [{"path": "train.jsonl", "sha256": provenance.sha256(M)}]
    meta = {"checkpoints": [{"sha256": "0" * 64, "path": "best.safetensors", "trained_on": seen}]}
    (tmp_path / "p.jsonl.meta.json").write_text(json.dumps(meta))
    done = cli("evaluate", file, "--test", M, "--json")
    assert done.err.startswith(f"CAUTION: {file} comes from a checkpoint that was trained on {M}")
    assert json.loads(done.out)["trained_on_reference"] is True


def test_windows_that_rounding_made_empty_score_nothing_and_are_counted(cli: Cli, tmp_path: Path) -> None:
    """The official code rounds to whole seconds and may write [7, 7]; reversed windows stay a fault."""
    manifest, answers = tmp_path / "m.jsonl", tmp_path / "p.jsonl"
    labels = {"qid": 1, "query": "rain", "vid": "a", "duration": 20, "relevant_windows": [[7, 10]]}
    manifest.write_text(json.dumps(labels) + "\n")

    def answer(*windows: list[float]) -> None:
        record = {"qid": 1, "query": "rain", "vid": "a", "pred_relevant_windows": windows}
        answers.write_text(json.dumps(record) + "\n")

    answer([7, 7, 0.9], [7, 10, 0.8], [9, 9, 0.1])
    done = cli("evaluate", answers, "--test", manifest, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["brief"]["MR-full-R1@0.5"] == 0
    assert told["extra"]["R5@0.7"] == 100
    assert told["brief"]["MR-full-mAP@0.5"] == 50  # the second of the list is the first hit
    assert "2 windows have no length (first: 1); they overlap nothing" in done.err
    for refused in (
        cli("fuse", answers, "--pool", "--out", tmp_path / "f.jsonl"),
        cli("submit", answers, "--queries", manifest, "--label", "A_B_task6_1", "--out", tmp_path / "s"),
    ):
        assert (refused.code, "window [7, 7] does not end after it starts" in refused.err) == (2, True)
    answer([8, 7, 0.9])
    done = cli("evaluate", answers, "--test", manifest)
    assert (done.code, "window [8, 7] does not end after it starts" in done.err) == (2, True)


def test_a_screen_that_knows_ascii_only(tmp_path: Path) -> None:
    names = {"vid": "Möwe", "query": "une vague déferle – 波", "qid": "ä1"}
    labels = tmp_path / "Prüfung.jsonl"
    labels.write_text(json.dumps({**names, "duration": 9, "relevant_windows": [[1, 3]]}) + "\n")
    answers = tmp_path / "Antwort.jsonl"
    answers.write_text(json.dumps({**names, "pred_relevant_windows": [[1, 1, 0.5]]}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "amrctl", "evaluate", answers, answers, "--test", labels],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "on Pr\\xfcfung.jsonl: 1 queries" in done.stdout.decode("ascii")
    assert "Traceback" not in done.stderr.decode("ascii")
