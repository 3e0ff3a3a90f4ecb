"""`amrctl submit` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from amrctl.data.manifest import write_manifest
from amrctl.data.predictions import write_predictions
from tests.conftest import Cli
from tests.submission.test_dcase2026 import META, QUERIES, made

LABEL = "Doe_X_task6_1"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m.jsonl", QUERIES.queries)
    write_predictions(tmp_path / "p.jsonl", made().items, META)
    return tmp_path


def test_submit_then_check(cli: Cli, work: Path) -> None:
    brief = {f"MR-full-{n}": 12.5 for n in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")}
    (work / "a.json").write_text(json.dumps({"brief": brief}))
    (work / "b.json").write_text(json.dumps({"brief": brief | {"MR-full-mAP": 9.75}}))
    authors = ["--author", "Doe, Jo, jo@x.org, X University", "--author", "Roe, Al, al@x.org, X"]
    done = cli(
        "submit", work / "p.jsonl", work / "p.jsonl", "--queries", work / "m.jsonl", "--label", LABEL,
        "--out", work / "s", *authors, "--external-dataset", "Clotho, https://example.org", "--json",
        "--development-scores", work / "a.json", work / "b.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["labels"] == [LABEL, "Doe_X_task6_2"]
    assert "still unknown" in done.err
    meta = yaml.safe_load((work / "s" / "Doe_X_task6_2.meta.yaml").read_text())
    assert [a["lastname"] for a in meta["submission"]["authors"]] == ["Doe", "Roe"]
    assert meta["system"]["external_datasets"] == [{"name": "Clotho", "url": "https://example.org"}]
    assert meta["results"]["development_testing"]["mAP"] == 9.75
    for target in (work / "s", told["package"]):
        done = cli("submit", "--check", target, "--queries", work / "m.jsonl")
        assert done.code == 0, done.err
        assert "2 systems, 3 queries, no fault" in done.out


def test_check_lists_all_faults(cli: Cli, work: Path) -> None:
    assert (
        cli(
            "submit", work / "p.jsonl", "--queries", work / "m.jsonl", "--label", LABEL, "--out", work / "s"
        ).code
        == 0
    )
    (work / "s" / "Doe_X_task6.zip").unlink()
    (work / "s" / f"{LABEL}.output.jsonl").write_text('{"qid": "q1", "pred_relevant_windows": [[2, 1]]}\n')
    done = cli("submit", "--check", work / "s", "--queries", work / "m.jsonl")
    assert done.code == 2
    assert done.out.count("\n") == 6  # reversed, no query, no vid, two queries unanswered, CSV differs
    assert "would be refused: 6 faults" in done.err
    as_json = cli("submit", "--check", work / "s", "--queries", work / "m.jsonl", "--json")
    assert (as_json.code, len(json.loads(as_json.out)["faults"])) == (2, 6)


def test_template(cli: Cli, work: Path) -> None:
    printed = cli("submit", "--print-template")
    assert printed.code == 0
    (work / "t.yaml").write_text(printed.out + "extra: ${trainable_parameters}\n")
    command = ["submit", work / "p.jsonl", "--queries", work / "m.jsonl", "--label", LABEL]
    done = cli(*command, "--out", work / "s", "--template", work / "t.yaml")
    assert done.code == 0, done.err
    assert yaml.safe_load((work / "s" / f"{LABEL}.meta.yaml").read_text())["extra"] == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["p.jsonl", "--label", "Doe_task6", "--out", "s"], "is no label"),
        (["p.jsonl", "--out", "s"], "--label missing"),
        (["--label", LABEL, "--out", "s"], "P.jsonl missing"),
        (["p.jsonl"] * 5 + ["--label", LABEL, "--out", "s"], "at most 4"),
        (["p.jsonl", "--label", LABEL, "--out", "s", "--abbreviation", "muchtoolong"], "11 characters"),
        (["p.jsonl", "--label", LABEL, "--out", "s", "--author", "me"], "author 'me'"),
        (["p.jsonl", "--label", LABEL, "--out", "s", "--template", "none.yaml"], "cannot read the template"),
        (
            ["p.jsonl", "--label", LABEL, "--out", "s", "--development-scores", "m.jsonl"],
            "m.jsonl is not JSON",
        ),
        (["p.jsonl", "--check", "s"], "stands alone"),
        (["--check", "nowhere"], "nowhere does not exist"),
        (["late.jsonl", "--label", LABEL, "--out", "s"], "[2, 101] leaves the recording of 99.5 s"),
    ],
)
def test_mistakes_write_nothing(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(work)
    write_predictions("late.jsonl", made({"q3": [[2, 101, 0.5]]}).items, {})
    done = cli("submit", *options, "--queries", "m.jsonl")
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not (work / "s").exists()


def test_clip_and_queries_needed(cli: Cli, work: Path) -> None:
    write_predictions(work / "late.jsonl", made({"q3": [[2, 101, 0.5]]}).items, {})
    done = cli(
        "submit",
        work / "late.jsonl",
        "--queries",
        work / "m.jsonl",
        "--label",
        LABEL,
        "--out",
        work / "s",
        "--clip",
    )
    assert done.code == 0, done.err
    assert "1 windows shortened" in done.err
    assert cli("submit", "--check", work / "s", "--queries", work / "m.jsonl").code == 0
    done = cli("submit", work / "late.jsonl", "--label", LABEL, "--out", work / "t")
    assert done.code == 2
    assert "--queries is missing" in done.err
