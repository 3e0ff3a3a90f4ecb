"""Every fault that a package can have is found, and all of them at once."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from amrctl.errors import SubmissionError
from amrctl.submission.check import check_package
from amrctl.submission.dcase2026 import write_submission, write_zip
from tests.submission.test_dcase2026 import QUERIES, made

Entries = dict[str, bytes]
L = "Doe_X_task6_1"
AT = f"Doe_X_task6/task6/{L}/{L}"


@pytest.fixture
def entries(tmp_path: Path) -> Entries:
    write_submission(tmp_path / "s", [made()], QUERIES, L)
    with zipfile.ZipFile(tmp_path / "s" / "Doe_X_task6.zip") as package:
        return {name: package.read(name) for name in package.namelist()}


def lines(**changes: object) -> bytes:
    """The first query's line with `changes`, the two others as they should be."""
    first = {"qid": "q1", "query": 'A "small" dog, barking', "vid": "v1", "pred_relevant_windows": [[1, 2]]}
    rest = [
        {"qid": 7, "query": "Regen fällt", "vid": "v2", "pred_relevant_windows": [[0, 99.5]]},
        {"qid": "q3", "query": "rain falls", "vid": "v2", "pred_relevant_windows": [[2, 4]]},
    ]
    return "".join(json.dumps(record) + "\n" for record in [first | changes, *rest]).encode()


def windows(*values: object) -> Callable[[Entries], None]:
    return lambda e: e.update({f"{AT}.output.jsonl": lines(pred_relevant_windows=list(values))})


def line(**changes: object) -> Callable[[Entries], None]:
    return lambda e: e.update({f"{AT}.output.jsonl": lines(**changes)})


def text(ending: str, old: str, new: str) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        before = entries[AT + ending].decode()
        assert old in before
        entries[AT + ending] = before.replace(old, new, 1).encode()

    return change


def move(old: str, new: str) -> Callable[[Entries], None]:
    return lambda e: e.update({new: e.pop(old)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (windows([1, 2, 0.5]), "without a score"),
        (windows(), "empty"),
        (windows([5, 5]), "does not end after it starts"),
        (windows([6, 5]), "does not end after it starts"),
        (windows([1, 60.1]), "leaves the recording of 60 s"),
        (windows([-0.5, 3]), "leaves the recording"),
        (windows(["a", 3]), "not a number"),
        (windows([True, 3]), "not a number"),
        (windows([1, 10**400]), "not a number"),
        (windows(*[[i, i + 1] for i in range(11)]), "11 windows; at most 10"),
        (windows("x"), "a window is [start, end]"),
        (line(pred_relevant_windows=None), "not a list"),
        (line(qid="q9"), "qid q9 is not in the query list"),
        (line(qid="q9"), "qid q1 is not answered"),
        (line(qid="q3"), "qid q3 is answered twice"),
        (line(qid="7"), "the query list spells it as a number"),
        (line(qid=None), "an object with a qid"),
        (line(vid="v2"), "vid differs"),
        (line(query="rain"), "query differs"),
        (text(".output.jsonl", '"vid": "v1", ', ""), "vid is missing"),
        (text(".output.jsonl", "[1, 5.5]", "[NaN, 5.5]"), "not JSON"),
        (text(".output.jsonl", "{", ""), "not JSON"),
        (lambda e: e.update({f"{AT}.output.jsonl": b"\xff"}), "not UTF-8"),
        (lambda e: e.pop(f"{AT}.output.jsonl"), "output.jsonl is missing"),
        (lambda e: e.pop(f"{AT}.meta.yaml"), "meta.yaml is missing"),
        (lambda e: e.clear(), "there is no <label>.output.jsonl"),
        (text(".output.csv", "5.5", "5.25"), "qid q1 has other windows"),
        (text(".output.csv", "q3,", "q9,"), "other windows"),
        (text(".output.csv", "rank", "place"), "first row"),
        (text(".output.csv", ",1,1,5.5", ",2,1,5.5"), "row 2"),
        (text(".output.csv", ",5.5,0.5", ",5.5,nan"), "row 2"),
        (text(".output.csv", ",5.5,0.5", ",5.5"), "row 2"),
        (lambda e: e.update({f"{AT}.output.csv": b'qid,"\xff'}), "not CSV"),
        (text(".meta.yaml", L, "Doe_X_task6_2"), "submission.label is 'Doe_X_task6_2'"),
        (text(".meta.yaml", 'abbreviation: "unknown"', "abbreviation: muchtoolong"), "at most 10 characters"),
        (text(".meta.yaml", 'authors: "unknown"', "authors: []"), "not a list of authors"),
        (text(".meta.yaml", 'authors: "unknown"', "authors: [{lastname: Doe}]"), "corresponding"),
        (text(".meta.yaml", "107", "many"), "total_parameters 'many'"),
        (text(".meta.yaml", 'mAP: "unknown"', "mAP: good"), "results.development_testing.mAP 'good'"),
        (text(".meta.yaml", 'name: "unknown"', 'name: "${name}"'), "submission.name is not filled in"),
        (text(".meta.yaml", "submission:\n", "submission: x\nother:\n"), "not a block of keys"),
        (lambda e: e.update({f"{AT}.meta.yaml": b"- 1\n"}), "a YAML mapping is expected"),
        (text(".meta.yaml", "submission:", "submission: ["), "not YAML"),
        (text(".meta.yaml", 'name: "unknown"', "name: &a [*a]"), "aliases"),
        (move(f"{AT}.output.csv", f"other/task6/{L}/{L}.output.csv"), "2 root folders"),
        (
            move(f"{AT}.output.csv", f"Doe_X_task6/task5/{L}/{L}.output.csv"),
            f"should lie at <root>/task6/{L}",
        ),
        (move(f"{AT}.output.csv", f"{L}.output.csv"), "should lie at"),
        (move(f"{AT}.output.csv", f"{AT}.output.txt"), "does not belong here"),
        (lambda e: e.update({f"/abs/{L}.output.csv": b""}), "leaves the package"),
        (lambda e: e.update({"a/../../b.output.csv": b""}), "leaves the package"),
        (lambda e: e.update({f"{AT}.extra.output.jsonl": b""}), "is no label"),
        (
            lambda e: e.update({k.replace(L, "Roe_X_task6_2"): v for k, v in e.items()}),
            "the labels differ in more than their number",
        ),
        (
            lambda e: e.update(
                {k.replace(L, f"Doe_X_task6_{n}"): v for k, v in dict(e).items() for n in range(2, 6)}
            ),
            "5 systems; at most 4",
        ),
    ],
)
def test_each_fault_is_found(
    entries: Entries, tmp_path: Path, change: Callable[[Entries], None], words: str
) -> None:
    write_zip(tmp_path / "good.zip", entries)
    assert check_package(tmp_path / "good.zip", QUERIES).faults == []
    change(entries)
    write_zip(tmp_path / "bad.zip", entries)
    faults = check_package(tmp_path / "bad.zip", QUERIES).faults
    assert any(words in fault for fault in faults), faults
    assert not any("\n" in fault for fault in faults)


def test_all_faults_at_once(entries: Entries, tmp_path: Path) -> None:
    windows([5, 5], [1, 70])(entries)
    text(".meta.yaml", "107", "many")(entries)
    write_zip(tmp_path / "bad.zip", entries)
    faults = check_package(tmp_path / "bad.zip", QUERIES).faults
    assert len(faults) == 4  # two windows, the CSV that tells others, the count of parameters
    assert f"{AT}.output.jsonl:1: qid q1: window [5, 5]" in faults[0]


def test_unpacked_flat_and_broken(entries: Entries, tmp_path: Path) -> None:
    for name, data in entries.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = check_package(tmp_path / "tree", QUERIES)
    assert (found.labels, found.faults) == ([L], [])
    assert check_package(tmp_path / "s", QUERIES).faults == []
    # a folder with nothing but the zip is the zip
    (tmp_path / "only").mkdir()
    write_zip(tmp_path / "only" / "x.zip", entries)
    assert check_package(tmp_path / "only", QUERIES).labels == [L]
    # the flat folder and its zip must agree
    path = tmp_path / "s" / f"{L}.meta.yaml"
    path.write_text(path.read_text().replace("107", "108"))
    assert any(
        "differs from the file beside the zip" in f for f in check_package(tmp_path / "s", QUERIES).faults
    )
    (tmp_path / "s" / "Doe_X_task6.zip").write_bytes(b"PK no")
    assert any("cannot be read as a zip" in f for f in check_package(tmp_path / "s", QUERIES).faults)
    (tmp_path / "tree" / "link.output.csv").symlink_to(path)
    assert any("is a link" in f for f in check_package(tmp_path / "tree", QUERIES).faults)
    with pytest.raises(SubmissionError, match="does not exist"):
        check_package(tmp_path / "nowhere", QUERIES)


def test_damaged_zip(entries: Entries, tmp_path: Path) -> None:
    write_zip(tmp_path / "good.zip", entries)
    data = bytearray((tmp_path / "good.zip").read_bytes())
    data[150] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(data)
    assert check_package(tmp_path / "bad.zip", QUERIES).faults


def test_a_template_may_have_another_layout(entries: Entries, tmp_path: Path) -> None:
    entries[f"{AT}.meta.yaml"] = b"system_name: mine\n"
    write_zip(tmp_path / "p.zip", entries)
    found = check_package(tmp_path / "p.zip", QUERIES)
    assert found.faults == []
    assert any("no 'submission' block" in note for note in found.notes)


def test_order_is_only_a_note(entries: Entries, tmp_path: Path) -> None:
    name = f"{AT}.output.jsonl"
    entries[name] = b"".join(reversed(entries[name].splitlines(keepends=True)))
    write_zip(tmp_path / "p.zip", entries)
    found = check_package(tmp_path / "p.zip", QUERIES)
    assert any("order" in note for note in found.notes)
    assert any("still unknown: submission.name" in note for note in found.notes)
    assert found.faults == []
