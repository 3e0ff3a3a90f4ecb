"""Retrieval metrics against a slow and obvious implementation; labels and challenge files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.inspect import explain
from amrctl.data.relevance import original, read_relevant
from amrctl.data.score_matrix import ScoreMatrix, read_scores, write_scores
from amrctl.errors import AmrctlError, ManifestError, RecipeError
from amrctl.evaluation.retrieval import METRICS, guess, parse, rank
from tests.conftest import Cli

ODD = ("VCR,rewind,opendoor.wav", 'say "hi" (1).wav', " café.wav", "a b.c.wav")


def slow(scores: list[float], relevant: set[int], kind: str, k: int) -> float:
    """Walk down the list, counting."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))  # ties: the earlier column
    hits, total = 0, 0.0
    for place, column in enumerate(order[:k], start=1):
        if column in relevant:
            hits += 1
            total += hits / place
    return total / len(relevant) if kind == "mAP" else hits / len(relevant)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_metrics_are_those_of_the_slow_count(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 25))
    rows = data.draw(st.integers(1, 6))
    values = st.integers(0, 6)  # many ties
    scores = np.array([[data.draw(values) for _ in range(columns)] for _ in range(rows)], np.float32)
    sets = [sorted(data.draw(st.sets(st.integers(0, columns - 1), min_size=1))) for _ in range(rows)]
    found = rank(scores, sets).metrics()
    for name in METRICS:
        kind, k = parse(name)
        wanted = np.mean([slow(list(row), set(s), kind, k) for row, s in zip(scores, sets, strict=True)])
        assert found[name] == pytest.approx(100 * wanted, abs=1e-9)


def test_one_relevant_recording_gives_the_reciprocal_rank() -> None:
    scores = np.array([[5.0, 4, 3, 2, 1]])
    assert rank(scores, [[2]]).metrics(["mAP@10", "mAP@2", "R@1", "R@5"]) == {
        "mAP@10": pytest.approx(100 / 3),
        "mAP@2": 0,
        "R@1": 0,
        "R@5": 100,
    }
    with pytest.raises(RecipeError, match="did you mean 'mAP@10'"):
        rank(scores, [[2]]).metrics(["mAP10"])


@pytest.mark.parametrize("relevant", [[0], [0, 3], [1, 2, 3, 4]])
def test_guessing_is_the_mean_over_all_orders(relevant: list[int]) -> None:
    orders = np.array(list(itertools.permutations(range(5))), np.float32)
    found = rank(orders, [relevant] * len(orders))
    for name in ("mAP@2", "mAP@10", "R@1", "R@5"):
        assert guess(5, [relevant], name) == pytest.approx(found.metrics([name])[name])


def matrix(queries: tuple[str, ...] = ("a dog barks", "rain, then wind", "a dog barks")) -> ScoreMatrix:
    scores = np.array([[0.9, 0.1, 0.5, 0.5], [0.2, 0.8, -0.1, 0.3], [0.9, 0.1, 0.5, 0.5]], np.float32)
    vids = tuple(name.removesuffix(".wav") for name in ODD)
    return ScoreMatrix(scores, queries, (vids[0], vids[1], vids[3]), vids, ODD, {"checkpoints": []})


def test_a_score_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_scores(path, matrix())
    back = read_scores(path)
    np.testing.assert_array_equal(back.scores, matrix().scores)
    assert (back.queries, back.written_for, back.vids, back.files) == (
        matrix().queries, matrix().written_for, matrix().vids, matrix().files,
    )  # fmt: skip
    told = explain(path)
    assert told.kind == "score matrix"
    assert (told.facts["queries"], told.facts["recordings"]) == (3, 4)
    (tmp_path / "t.h5").write_text("x")
    with pytest.raises(AmrctlError, match="not a score file"):
        read_scores(tmp_path / "t.h5")


def test_labels_of_both_forms(tmp_path: Path) -> None:
    assert original(matrix()).relevant == ((0,), (1,), (3,))
    table = tmp_path / "extra.csv"
    with open(table, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([
            ["query", "audio_filenames"],
            ["A dog  barks", str([ODD[0], ODD[3]])],
            ["never asked", str([ODD[1]])],
        ])  # fmt: skip
    labels = read_relevant(table, matrix())
    assert (labels.name, labels.rows, labels.relevant, labels.unasked) == ("extra", (0,), ((0, 3),), 1)
    lines = tmp_path / "l.jsonl"
    lines.write_text(json.dumps({"query": "rain, then wind", "relevant": ["a b.c"]}) + "\n")
    assert read_relevant(lines, matrix()).relevant == ((3,),)
    for text, told in (
        ('{"query": "a dog barks", "relevant": ["nothing.wav"]}', "no recording 'nothing.wav'"),
        ('{"query": "a dog barks", "relevant": []}', "no relevant"),
        ('{"query": "x", "relevant": ["a b.c"]}', "none of its queries"),
    ):
        lines.write_text(text + "\n")
        with pytest.raises(ManifestError, match=told):
            read_relevant(lines, matrix())
    table.write_text("query,audio_filenames\na dog barks,\"__import__('os').getcwd()\"\n")
    with pytest.raises(ManifestError, match=r"extra.csv:2: audio_filenames is no list"):
        read_relevant(table, matrix())


def test_evaluate_names_both_label_sets(tmp_path: Path, cli: Cli) -> None:
    write_scores(tmp_path / "s.h5", matrix())
    extra = tmp_path / "extra.jsonl"
    extra.write_text(json.dumps({"query": "a dog barks", "relevant": [ODD[0], ODD[3]]}) + "\n")
    told = cli("evaluate", tmp_path / "s.h5", "--relevant", extra, "--json", "--out", tmp_path / "m.json")
    assert told.code == 0, told.err
    result = json.loads(told.out)
    assert result == json.loads((tmp_path / "m.json").read_text())
    first, second = result["sets"]
    assert (first["labels"], second["labels"]) == ("original captions", "extra")
    assert first["metrics"]["mAP@10"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    assert second["metrics"]["mAP@10"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert second["metrics"]["R@1"] == pytest.approx(50)
    assert cli("evaluate", tmp_path / "s.h5", "--test", extra).err.count("\n") == 1
    assert cli("evaluate", tmp_path / "p.jsonl", "--relevant", extra).code == 2


def test_challenge_files_keep_odd_names(tmp_path: Path, cli: Cli) -> None:
    write_scores(tmp_path / "s.h5", matrix())
    base = ("submit", tmp_path / "s.h5", "--task", "dcase2025", "--label", "Doe_X_task6_2")
    told = cli(*base, "--out", tmp_path / "full")
    assert told.code == 0, told.err
    with open(tmp_path / "full" / "Doe_X_task6_2.output.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["index", *ODD]
    assert [row[0] for row in rows[1:]] == ["a dog barks", "rain, then wind"]  # equal captions once
    np.testing.assert_array_equal(
        np.array([[float(v) for v in row[1:]] for row in rows[1:]], np.float32), matrix().scores[:2]
    )
    assert cli(*base, "--top-k", "3", "--out", tmp_path / "list").code == 0
    with open(tmp_path / "list" / "Doe_X_task6_2.output.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["caption", "file_name_1", "file_name_2", "file_name_3"]
    assert rows[1] == ["a dog barks", ODD[0], ODD[2], ODD[3]]
    for words, text in (
        ((*base, "--out", tmp_path / "full"), "exists"),
        ((*base, "--top-k", "5", "--out", tmp_path / "x"), "has 4 recordings"),
        ((*base, "--queries", tmp_path / "q", "--out", tmp_path / "x"), "leave --queries out"),
        (("submit", tmp_path / "s.h5", "--top-k", "5"), "--top-k belongs"),
    ):
        told = cli(*words)
        assert (told.code, told.err.count("\n")) == (2, 1)
        assert text in told.err
    assert not (tmp_path / "x").exists()
