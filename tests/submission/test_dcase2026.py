"""The writers against the documented forms, and what stops them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from amrctl.data.manifest import Manifest, Query, read_manifest
from amrctl.data.predictions import Prediction, Predictions
from amrctl.errors import OutputError, SubmissionError
from amrctl.submission.check import check_package
from amrctl.submission.dcase2026 import arrange, write_submission
from amrctl.submission.form import labels_for, parse_label
from amrctl.submission.metadata import UNKNOWN, Told, facts, fill, parse_authors, read_scores, template

QUERIES = Manifest(
    None,
    (
        Query("q1", 'A "small" dog, barking', "v1", 60.0, None),
        Query("7", "Regen fällt", "v2", 99.5, None, int_qid=True),
        Query("q3", "rain falls", "v2", 99.5, None),
    ),
)
META: dict[str, Any] = {
    "operation": "predict",
    "checkpoints": [{"sha256": "ab" * 32, "path": "run/best.safetensors", "recipe": "baseline"}],
    "parameters": {"trainable": 7, "frozen": 100},
    "audio_encoders": ["logmel"],
    "text_encoders": ["words"],
    "datasets": ["castella_train.jsonl"],
}


def made(
    changes: dict[str, list[list[float]]] | None = None, meta: dict[str, Any] | None = None
) -> Predictions:
    windows = {"q1": [[1, 5.5, 0.5], [7, 9, 0.25]], "7": [[0, 99.5, 1.0]], "q3": [[2, 4, 0.9]]} | (
        changes or {}
    )
    items = [
        Prediction(
            q.qid, q.query, q.vid, q.duration, np.array(windows[q.qid], float).reshape(-1, 3), None, q.int_qid
        )
        for q in reversed(QUERIES.queries)
    ]
    return Predictions(Path("p.jsonl"), tuple(items), META if meta is None else meta)


def test_the_four_files_of_one_system(tmp_path: Path) -> None:
    done = write_submission(tmp_path / "s", [made()], QUERIES, "Doe_TU-X_task6_1", told=Told(name="a: b"))
    label = "Doe_TU-X_task6_1"
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "Doe_TU-X_task6.zip", f"{label}.meta.yaml", f"{label}.output.csv", f"{label}.output.jsonl",
    ]  # fmt: skip
    text = (tmp_path / "s" / f"{label}.output.jsonl").read_text(encoding="utf-8")
    assert text == (
        '{"qid": "q1", "query": "A \\"small\\" dog, barking", "vid": "v1", '
        '"pred_relevant_windows": [[1, 5.5], [7, 9]]}\n'
        '{"qid": 7, "query": "Regen fällt", "vid": "v2", "pred_relevant_windows": [[0, 99.5]]}\n'
        '{"qid": "q3", "query": "rain falls", "vid": "v2", "pred_relevant_windows": [[2, 4]]}\n'
    )
    rows = (tmp_path / "s" / f"{label}.output.csv").read_text(encoding="utf-8").split("\n")
    assert rows == [
        "qid,vid,query,rank,start,end,score",
        'q1,v1,"A ""small"" dog, barking",1,1,5.5,0.5',
        'q1,v1,"A ""small"" dog, barking",2,7,9,0.25',
        "7,v2,Regen fällt,1,0,99.5,1.0",
        "q3,v2,rain falls,1,2,4,0.9",
        "",
    ]
    meta = yaml.safe_load((tmp_path / "s" / f"{label}.meta.yaml").read_text(encoding="utf-8"))
    assert meta["submission"]["label"] == label
    assert meta["submission"]["name"] == "a: b"
    assert meta["system"]["complexity"] == {
        "total_parameters": 107, "trainable_parameters": 7, "frozen_parameters": 100,
    }  # fmt: skip
    assert meta["system"]["description"]["detector"] == ["baseline"]
    assert meta["system"]["description"]["verifier"] == "none"
    assert meta["results"]["development_testing"]["R1@0.7"] == UNKNOWN
    assert "authors" in done.unknown[label]
    with zipfile.ZipFile(tmp_path / "s" / "Doe_TU-X_task6.zip") as package:
        names = package.namelist()
        assert names == [
            f"Doe_TU-X_task6/task6/{label}/{label}{end}"
            for end in (".meta.yaml", ".output.csv", ".output.jsonl")
        ]
        for name in names:
            assert package.read(name) == (tmp_path / "s" / Path(name).name).read_bytes()


def test_same_input_same_bytes_and_several_systems(tmp_path: Path) -> None:
    files = [made(), made({"q3": [[3, 4, 0.1]]}), made(meta={})]
    metrics = []
    for i in range(3):
        brief = {f"MR-full-{n}": 10.25 + i for n in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")}
        metrics.append(tmp_path / f"m{i}.json")
        metrics[-1].write_text(json.dumps({"brief": brief}))
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7 small")
    for out in ("a", "b"):
        write_submission(
            tmp_path / out, files, QUERIES, "Doe_X_task6_1", scores=metrics, technical_report=pdf
        )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    found = check_package(tmp_path / "a" / "Doe_X_task6.zip", QUERIES)
    assert (found.labels, found.faults) == ([f"Doe_X_task6_{n}" for n in (1, 2, 3)], [])
    second = yaml.safe_load((tmp_path / "a" / "Doe_X_task6_2.meta.yaml").read_text())
    assert second["results"]["development_testing"]["mAP@0.75"] == 11.25
    third = yaml.safe_load((tmp_path / "a" / "Doe_X_task6_3.meta.yaml").read_text())
    assert third["system"]["complexity"]["total_parameters"] == UNKNOWN
    assert third["system"]["description"]["verifier"] == UNKNOWN
    assert (tmp_path / "a" / "Doe_X_task6_1.technical_report.pdf").exists()


def test_best_ten_by_score() -> None:
    many = [[i, i + 1, 0.01 * i] for i in range(14)]
    [first, *_] = arrange(made({"q1": many}), QUERIES)
    assert first.windows[:, 0].tolist() == list(range(13, 3, -1))


def test_clip_shortens_and_drops(tmp_path: Path) -> None:
    file = made({"q1": [[50, 61, 0.9], [60, 70, 0.8], [-2, 3, 0.7]]})
    with pytest.raises(SubmissionError, match=r"qid q1: window \[50, 61\] leaves the recording of 60 s"):
        arrange(file, QUERIES)
    assert arrange(file, QUERIES, clip=True)[0].windows[:, :2].tolist() == [[50, 60], [0, 3]]
    with pytest.raises(SubmissionError, match="qid q1 has no window"):
        arrange(made({"q1": [[60, 70, 0.8]]}), QUERIES, clip=True)
    # the noise of arithmetic is neither an error nor passed on
    noisy = made({"q1": [[50, 60 + 1e-9, 0.9]]})
    assert arrange(noisy, QUERIES)[0].windows[0, 1] == 60.0


def drop(file: Predictions) -> Predictions:
    return Predictions(file.path, file.items[1:], file.meta)


def add(file: Predictions) -> Predictions:
    extra = Prediction("q9", "x", "v1", 60.0, np.array([[1.0, 2.0, 0.5]]))
    return Predictions(file.path, (*file.items, extra), file.meta)


def twice(file: Predictions) -> Predictions:
    return Predictions(file.path, (*file.items, file.items[0]), file.meta)


def elsewhere(file: Predictions) -> Predictions:
    a = file.items[0]
    return Predictions(
        file.path, (Prediction(a.qid, "hail", "v8", 9.0, a.windows), *file.items[1:]), file.meta
    )


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (drop(made()), "1 query missing (first: q3)"),
        (add(made()), "1 query not in the query list (first: q9)"),
        (twice(made()), "answered twice"),
        (elsewhere(made()), "qid q3 is about v8, in the query list about v2; qid q3 has another text"),
        (made({"q3": []}), "qid q3 has no window"),
        (made({"q3": [[5, 5, 0.5]]}), "qid q3 has a window that does not end after it starts"),
        (made({"q3": [[6, 5, 0.5]]}), "does not end after it starts"),
        (made({"q3": [[-1, 5, 0.5]]}), "leaves the recording"),
    ],
)
def test_faults_stop_it_and_nothing_is_written(file: Predictions, words: str, tmp_path: Path) -> None:
    with pytest.raises(SubmissionError) as caught:
        write_submission(tmp_path / "s", [made(), file], QUERIES, "Doe_X_task6_1")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["Doe_task6_1", "Doe_X_Y_task6_1", "Doe_X_task6_0", "Doe_X_task6_5", "Doe_X_task7_1", "D.e_X_task6_1",
     "../a_X_task6_1", "_X_task6_1", "Doe_X_task6_1\n", "Doe_X_task6_1.csv", "Dö_X_task6_1", "Doe_X_task6_٢"],
)  # fmt: skip
def test_labels_that_are_none(text: str) -> None:
    with pytest.raises(SubmissionError, match="is no label"):
        parse_label(text)


def test_numbering() -> None:
    assert [str(n) for n in labels_for(parse_label("Doe_X_task6_2"), 3)] == [
        f"Doe_X_task6_{n}" for n in (2, 3, 4)
    ]
    with pytest.raises(SubmissionError, match="5 files from Doe_X_task6_1 on end at number 5"):
        labels_for(parse_label("Doe_X_task6_1"), 5)


def test_existing_folder(tmp_path: Path) -> None:
    out = tmp_path / "s"
    write_submission(out, [made()], QUERIES, "Doe_X_task6_1")
    with pytest.raises(OutputError, match="--overwrite"):
        write_submission(out, [made()], QUERIES, "Doe_X_task6_1")
    write_submission(out, [made()], QUERIES, "Doe_X_task6_2", overwrite=True)
    assert (out / "Doe_X_task6_2.output.jsonl").exists()
    assert not (out / "Doe_X_task6_1.output.jsonl").exists()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SubmissionError, match=r"holds thesis\.tex"):
        write_submission(out, [made()], QUERIES, "Doe_X_task6_2", overwrite=True)
    assert (out / "thesis.tex").exists()


def test_own_template(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("submission: {label: ${label}}\nprice: $$5\nparameters: ${total_parameters}\n")
    write_submission(tmp_path / "s", [made()], QUERIES, "Doe_X_task6_1", template=mine)
    text = (tmp_path / "s" / "Doe_X_task6_1.meta.yaml").read_text()
    assert yaml.safe_load(text) == {
        "submission": {"label": "Doe_X_task6_1"},
        "price": "$5",
        "parameters": 107,
    }
    # a fixed label is caught by the package's own check
    mine.write_text("submission: {label: Doe_X_task6_1}\n")
    with pytest.raises(
        SubmissionError, match=r"submission\.label is 'Doe_X_task6_1', the file is Doe_X_task6_2"
    ):
        write_submission(tmp_path / "t", [made(), made()], QUERIES, "Doe_X_task6_1", template=mine)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a: ${labell}",
            "no placeholder is called 'labell'; did you mean 'label'?; there is: abbreviation, ",
        ),
        ("a: ${zzzzz}", "there is: abbreviation, "),
        ("a: $ 5", "a $ stands alone"),
        ('a: "${label}"', "not YAML line 1"),
        ("- ${label}", "mapping is expected"),
    ],
)
def test_templates_that_do_not_work(text: str, words: str) -> None:
    with pytest.raises(SubmissionError) as caught:
        fill(text, "mine.yaml", facts("Doe_X_task6_1", META, Told(), None))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_value_survives_the_template() -> None:
    nasty = "a: b # c \"d\" 'e' \\ ${label} $ {x} [y]\n- \t& *é 🎵 %"
    filled = fill(
        template(None)[0], "built-in", facts("Doe_X_task6_1", META, Told(name=nasty, description=nasty), None)
    )
    parsed = yaml.safe_load(filled)
    assert parsed["submission"]["name"] == parsed["system"]["description"]["text"] == nasty


def test_authors_and_other_facts(tmp_path: Path) -> None:
    [one, two] = parse_authors(["Doe, Jo, jo@x.org, University of X, Dept. Y", "Roe, Al, al@x.org, Z"])
    assert one["affiliation"] == "University of X, Dept. Y"
    assert (one["corresponding"], "corresponding" in two) == (True, False)
    with pytest.raises(SubmissionError, match="author 'Doe, Jo'"):
        parse_authors(["Doe, Jo"])
    with pytest.raises(SubmissionError, match="11 characters"):
        Told(abbreviation="elevenchars")
    partial = facts("L", {**META, "parameters": {"trainable": 5}}, Told(), None)
    assert (partial["trainable_parameters"], partial["total_parameters"]) == (5, UNKNOWN)
    mixed = facts("L", {**META, "audio_encoders": ["logmel", "unknown"]}, Told(), None)
    assert mixed["verifier"] == UNKNOWN  # one source did not tell

    def scores(value: object) -> Callable[[], object]:
        path = tmp_path / "m.json"
        path.write_text(json.dumps(value))
        return lambda: read_scores(path)

    for value, words in (
        ([], "brief"),
        ({"brief": {}}, "R1@0.5"),
        ({"brief": {"MR-full-R1@0.5": 101}}, "R1@0.5"),
    ):
        with pytest.raises(SubmissionError, match=words):
            scores(value)()
    with pytest.raises(SubmissionError, match="2 files of development scores for 1"):
        write_submission(tmp_path / "s", [made()], QUERIES, "Doe_X_task6_1", scores=[tmp_path / "m.json"] * 2)
    (tmp_path / "r.pdf").write_text("no")
    with pytest.raises(SubmissionError, match="not a PDF"):
        write_submission(
            tmp_path / "s", [made()], QUERIES, "Doe_X_task6_1", technical_report=tmp_path / "r.pdf"
        )


def test_the_real_query_list(shared: Path, tmp_path: Path) -> None:
    listed = read_manifest(shared / "data" / "annotations" / "dcase2026_evaluation.jsonl")
    items = tuple(
        Prediction(q.qid, q.query, q.vid, q.duration, np.array([[0.0, q.duration, 0.5]])) for q in listed
    )
    write_submission(tmp_path / "s", [Predictions(None, items, {})], listed, "Doe_X_task6_1")
    lines = (tmp_path / "s" / "Doe_X_task6_1.output.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["qid"] for line in lines] == [
        f"dcase2026_evaluation_q{n:03}" for n in range(1, 178)
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s" / "Doe_X_task6_1.output.csv").read_text())))
    assert len(rows) == 177
    assert check_package(tmp_path / "s", listed).faults == []
