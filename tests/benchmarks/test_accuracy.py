"""The accuracy benchmark's own arithmetic: rows, sets, resume and tables (no training)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest, Query, read_manifest, write_manifest
from amrctl.data.npz import import_npz
from amrctl.data.predictions import Prediction
from amrctl.evaluation.moments import METRICS
from benchmarks.accuracy import chain, control, run, second, sets, tables
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.guess import best_fixed, drawn, guesses
from benchmarks.accuracy.settings import FILES, HERE, PRETRAINED, REFERENCE, SETS, Plan, Row, read_plan

CLASSES = {
    "baby cry", "chainsaw", "clock tick", "dog bark", "fire crackling",
    "helicopter", "person sneeze", "rain", "rooster", "sea waves",
}  # fmt: skip


def queries(count: int, vids: int = 10_000) -> list[Query]:
    return [
        Query(f"q{i}", f"sentence {i}", f"v{i % vids}", 60.0, ((float(i % 50), float(i % 50 + 5)),))
        for i in range(count)
    ]


def manifest(items: list[Query]) -> Manifest:
    return Manifest(None, tuple(items), ())


def test_captions_cover_the_ten_classes_and_name_one_class_each() -> None:
    captions = yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8"))
    assert set(captions) == CLASSES
    assert min(len(set(sentences)) for sentences in captions.values()) >= 6
    every = Counter(" ".join(text.split()).casefold() for texts in captions.values() for text in texts)
    assert max(every.values()) == 1


def test_no_real_clip_is_in_two_splits(shared: Path) -> None:
    rows = sets.caption_rows(shared / "data" / "esc10" / "clips.csv")
    split_of: dict[str, set[str]] = {}
    for row in rows:
        split_of.setdefault(row["file"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert Counter(min(splits) for splits in split_of.values()) == {"train": 160, "val": 80, "test": 80}
    for split in ("train", "val", "test"):
        assert {row["event"] for row in rows if row["split"] == split} == CLASSES
    assert {(shared / "data" / "esc10" / "audio" / file).is_file() for file in split_of} == {True}


@pytest.mark.parametrize("count", [2, 3, 50])
def test_permuted_gives_every_query_the_sentence_of_another(count: int) -> None:
    plain = queries(count)
    swapped = sets.permuted(manifest(plain), lambda query: query.query)
    assert [(q.vid, q.windows) for q in swapped] == [(q.vid, q.windows) for q in plain]
    assert sorted((q.qid, q.query) for q in swapped) == sorted((q.qid, q.query) for q in plain)
    assert all(a.qid != b.qid for a, b in zip(plain, swapped, strict=True))


def test_permuted_never_asks_for_the_same_class() -> None:
    plain = manifest(queries(100))
    kinds = {q.qid: "dog" if i < 50 else f"kind {i % 7}" for i, q in enumerate(plain)}
    swapped = sets.permuted(plain, lambda query: kinds[query.qid])
    assert all(kinds[a.qid] != kinds[b.qid] for a, b in zip(plain, swapped, strict=True))
    assert [q.qid for q in swapped] != sorted(q.qid for q in swapped)
    kinds["q50"] = "dog"
    with pytest.raises(ValueError, match="51 of 100"):
        sets.permuted(plain, lambda query: kinds[query.qid])


@pytest.mark.parametrize("seed", range(5))
def test_unlike_asks_for_nothing_near(seed: int) -> None:
    """A third of all pairs are near; every sentence is asked for once, far from its own."""
    rng = np.random.default_rng(seed)
    plain, near = queries(60), np.triu(rng.random((60, 60)) < 1 / 3)
    similarity = np.where(near | near.T | np.eye(60, dtype=bool), 0.9, 0.05)
    swapped = sets.unlike(manifest(plain), similarity, seed)
    place = {q.qid: i for i, q in enumerate(plain)}
    assert [(q.vid, q.windows) for q in swapped] == [(q.vid, q.windows) for q in plain]
    assert sorted(place[q.qid] for q in swapped) == list(range(60))
    assert all(similarity[i, place[q.qid]] < 0.1 for i, q in enumerate(swapped))
    with pytest.raises(ValueError, match="no exchange"):
        sets.unlike(manifest(plain), np.ones((60, 60)), seed)


def test_divided_keeps_recordings_whole_and_shares_about_a_tenth() -> None:
    train, val = sets.divided(manifest(queries(2000, vids=1000)))
    assert not {q.vid for q in train} & {q.vid for q in val}
    assert len(train) + len(val) == 2000
    assert 140 <= len(val) <= 260


def test_frozen_data_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    made = sets.DataSet("castella", tmp_path / "work")
    made.folder.mkdir()
    for name in (*sets.MANIFESTS, sets.CONTROL):
        write_manifest(made.manifest(name), queries(4))
    made.commands.write_text("made\n")
    sets.freeze(made, tmp_path)
    sets.freeze(made, tmp_path)
    write_manifest(made.manifest("val"), queries(5), overwrite=True)
    with pytest.raises(sets.FrozenError, match=r"differs from .*data\.json \(val\)"):
        sets.freeze(made, tmp_path)


def test_every_row_resolves_with_the_shared_settings_on_both_sets() -> None:
    plan = read_plan()
    assert REFERENCE in plan.rows
    for row in plan.rows.values():
        for name in SETS:
            resolved = plan.resolved(row, name)
            for stage in row.stages:
                recipe = resolved[stage]
                own = [change for change in row.set if change.startswith("train.epochs=")]
                assert own or recipe["train"]["epochs"] == plan.epochs[name][stage]
                assert recipe["model"]["hidden_dim"] == plan.model["hidden_dim"]
                assert recipe["model"]["decoder"]["heads"] == plan.model["heads"]


def test_shared_sizes_are_given_only_where_the_recipe_has_a_place() -> None:
    plan = read_plan()
    row = replace(plan.rows[REFERENCE], set=("model.encoder=null", "train.batch=8"))
    changes = plan.changes(row, "esc10", "finetune")
    assert not any(change.startswith("model.encoder.") for change in changes)
    assert plan.resolved(row, "esc10")["finetune"]["train"]["batch"] == 8  # the row's own goes last


def test_a_row_with_an_unknown_key_is_named(tmp_path: Path) -> None:
    raw = yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8"))
    raw["rows"]["typo"] = {"recipe": "qd-detr", "pretain": True}
    path = tmp_path / "rows.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=r"row typo: \['pretain'\]"):
        read_plan(path)
    raw["rows"]["typo"] = {"recipe": "qd-detr", "features": "duel"}
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=r"row typo: \['duel'\]"):
        read_plan(path)
    raw["rows"]["typo"] = {"recipe": "qd-detr", "soups": ["greed"]}
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=r"row typo: \['greed'\]"):
        read_plan(path)


def test_a_row_of_several_streams_names_those_of_its_set() -> None:
    plan = read_plan()
    for name, (audio, text) in {
        "esc10": (["logmel", "gammatone"], ["words", "chars"]),
        "castella": (["simulated", "simulated-2"], ["simulated", "simulated-2"]),
    }.items():
        for stage, recipe in plan.resolved(plan.rows["qam-detr"], name).items():
            assert [stream["name"] for stream in recipe["features"]["audio"]] == audio, stage
            assert [stream["name"] for stream in recipe["features"]["text"]] == text
    single = plan.resolved(plan.rows["qam-3-way"], "esc10")["finetune"]
    assert [stream["name"] for stream in single["features"]["audio"]] == ["auto"]
    made = sets.DataSet("esc10", Path("work"))
    assert [made.reading(file).features.name for file in FILES] == ["features.h5", "streams.h5", "dual.h5"]
    assert made.reading("streams").main_features == made.features


def test_the_rows_of_qam_detr_are_its_ladder() -> None:
    """Each row adds one entry to the row before; the last differs from the recipe in its streams alone."""
    plan = read_plan()
    names = ["qd-detr+pretrain", "qam-bimamba", "qam-quality", "qam-multi-scale", "qam-3-way", "qam-detr"]
    ladder = [plan.resolved(plan.rows[name], "esc10")["finetune"] for name in names]
    slots = []
    for before, after in pairwise(ladder):
        slots.append([slot for slot in after["model"] if after["model"][slot] != before["model"][slot]])
        assert before["train"] == after["train"]
    assert slots == [["encoder"], ["heads"], ["encoder"], ["fusion"], ["tokens"]]
    assert [recipe["inference"]["score"]["kind"] for recipe in ladder] == ["foreground"] * 2 + ["product"] * 4


def test_the_second_view_is_of_the_same_sounds(shared: Path, tmp_path: Path) -> None:
    """Made with the real script: where the draws differ it is refused; else a linear map leads across."""
    items = [
        Query(f"q{i}", f"a dog barks {i} times", f"v{i}", 60.0, ((5.0 * (i % 7), 5.0 * (i % 7) + 9),))
        for i in range(12)
    ]
    path = tmp_path / "m.jsonl"
    write_manifest(path, items)
    script = [
        sys.executable,
        str(shared / "bench" / "simfeatures.py"),
        str(path),
        "--out",
        str(tmp_path / "s"),
    ]
    options = ["--snr", sets.SNR, "--distractors", sets.DISTRACTORS]
    subprocess.run([*script, *options], check=True, capture_output=True)
    file = tmp_path / "f.h5"
    import_npz(file, tmp_path / "s" / "clap", tmp_path / "s" / "clap_text", "simulated", read_manifest(path))
    with FeatureFile(file) as first:
        second.write_view([path], tmp_path / "second", first)
        seen = np.concatenate([first.load("audio", "simulated", [q.vid]).rows for q in items])
    view = [np.load(tmp_path / "second" / "clap" / f"{q.vid}.npz")["features"] for q in items]
    assert {part.shape for part in view} == {(60, second.VIEW)}
    rows = np.concatenate(view)
    # which frames of one recording are alike is the same in both views, and of another recording it is not
    near, here, there = (
        np.concatenate([np.corrcoef(x[60 * r : 60 * r + 60])[np.triu_indices(60, 1)] for r in range(12)])
        for x in (seen, rows, np.roll(rows, 60, axis=0))
    )
    assert np.corrcoef(near, here)[0, 1] > 0.9
    assert np.corrcoef(near, there)[0, 1] < 0.6
    tokens = np.load(tmp_path / "second" / "clap_text" / "qidq3.npz")["last_hidden_state"]
    assert tokens.shape == (8, second.TEXT_VIEW)
    path.write_text(path.read_text().replace("[5, 14]", "[6, 14]").replace("[5.0, 14.0]", "[6.0, 14.0]"))
    with FeatureFile(file) as first, pytest.raises(sets.FrozenError, match="recording v1: simfeatures"):
        second.write_view([path], tmp_path / "again", first)


def test_best_fixed_windows_are_the_ones_that_serve_most_queries() -> None:
    windows = [((0.0, 10.0),)] * 5 + [((20.0, 30.0),)] * 4 + [((40.0, 44.0), (50.0, 60.0))] * 2
    train = manifest([Query(str(i), "s", str(i), 60.0, w) for i, w in enumerate(windows)])
    first, second, third = best_fixed(train, wanted=3)
    for found, truth in ((first, (0, 10)), (second, (20, 30))):
        inside = min(found[1], truth[1]) - max(found[0], truth[0])
        assert inside / (max(found[1], truth[1]) - min(found[0], truth[0])) >= 0.7
    assert third[0] >= 35


def test_guesses_are_valid_predictions(tmp_path: Path) -> None:
    made = sets.DataSet("esc10", tmp_path)
    write_manifest(made.manifest("train"), queries(40))
    write_manifest(made.manifest("test"), [replace(q, duration=56.5) for q in queries(30)])
    told = guesses(made)
    assert all(0 <= value <= 100 for metrics in told.values() for value in metrics.values())
    assert told["best fixed windows"]["R5@0.7"] > 0
    assert told["true events, any"]["R5@0.7"] == 100  # each recording has fewer than five
    assert told == guesses(made)
    import numpy as np

    for start, end in drawn(np.random.default_rng(1), manifest(queries(40)), 4.0):
        assert 0 <= start < end <= 4


class Fake:
    """Stands for the command line: writes what training would, and counts."""

    calls: list[str]
    words: list[list[str]]

    def __init__(self) -> None:
        self.ran: list[str] = []

    def amrctl(self, verb: str, *args: str | Path) -> None:
        type(self).calls.append(verb)
        type(self).words.append([str(arg) for arg in args])
        out = Path(args[args.index("--out") + 1])
        if verb in ("pretrain", "finetune", "distill"):
            out.mkdir(parents=True, exist_ok=True)
            entries = [
                {"val": {"val": {"R1@0.7": 5.0, "mAP": 1.0}}, "epoch": 1, "seconds": 30.0},
                {"val": {"val": {"R1@0.7": 7.0, "mAP": 2.0}}, "epoch": 2, "seconds": 60.0},
            ]
            (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        else:
            out.write_text("predictions\n")

    def answer(self, *_: str | Path) -> dict[str, Any]:
        return {"metrics": {name: {"mean": 12.34567} for name in METRICS}, "against": {"metrics": {}}}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a row with the command line replaced by `Fake`."""
    Fake.calls, Fake.words = [], []
    monkeypatch.setattr(run, "Commands", Fake)

    def call(plan: Plan, name: str = REFERENCE, **options: Any) -> dict[str, Any]:
        Fake.calls.clear()
        Fake.words.clear()
        places = run.Places(tmp_path / "work", tmp_path / "results")
        data = sets.DataSet("esc10", tmp_path / "work" / "esc10")
        return run.run_row(plan, plan.rows[name], data, 1, places, **options)

    return call


def test_a_finished_run_is_not_repeated_until_its_settings_change(
    trained: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = read_plan()
    result = trained(plan)
    assert Fake.calls == ["finetune", "predict", "predict", "predict"]
    assert result["minutes"] == {"finetune": 1.5}
    assert result["validation"]["finetune"] == {"epoch": 2, "R1@0.7": 7.0, "mAP": 2.0}
    assert result["metrics"]["R1@0.7"] == 12.3457
    assert trained(plan) == result
    assert Fake.calls == []
    leftover = tmp_path / "work" / "esc10" / "runs" / f"{REFERENCE}.seed-1" / "leftover"
    leftover.touch()
    changed = replace(plan, train=(*plan.train, "train.clip=0.5"))
    trained(changed)
    assert Fake.calls[0] == "finetune"
    assert not leftover.exists()  # the outdated run is gone
    trained(changed)
    assert Fake.calls == []
    trained(changed, again=True)
    assert Fake.calls[0] == "finetune"
    places = run.Places(tmp_path / "elsewhere", tmp_path / "results")
    unpacked = run.predictions("esc10", REFERENCE, 1, places)
    assert unpacked is not None
    assert unpacked.read_text() == "predictions\n"


def test_a_row_of_two_stages_goes_on_from_its_pretraining(
    trained: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = trained(read_plan(), "qd-detr+pretrain")
    assert Fake.calls[:2] == ["pretrain", "finetune"]
    assert set(result["recipe"]) == {"pretrain", "finetune"}
    assert (tmp_path / "work" / "esc10" / "runs" / "qd-detr+pretrain.pretrain" / "log.jsonl").is_file()


def test_a_row_goes_on_from_another_with_what_its_commands_make(
    trained: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = read_plan()
    row = Row(
        "student", REFERENCE, init=REFERENCE, verb="distill", sets=("esc10",),
        before=("predict --checkpoint {row:qd-detr}/finetune/best.safetensors --test {queries} --out {out}",),
        options=("--teacher {part}.jsonl",),
    )  # fmt: skip
    result = trained(replace(plan, rows={**plan.rows, "student": row}), "student")
    assert Fake.calls == ["predict", "distill", "predict", "predict", "predict"]
    runs = tmp_path / "work" / "esc10" / "runs"
    teacher, student = Fake.words[0], Fake.words[1]
    assert teacher[teacher.index("--test") + 1] == str(tmp_path / "work" / "esc10" / "train.jsonl")
    assert student[student.index("--teacher") + 1] == str(runs / "student.seed-1" / "train.jsonl")
    assert student[student.index("--init") + 1] == str(runs / "qd-detr.seed-1/finetune/best.safetensors")
    assert result["recipe"]["init"] == [REFERENCE]


def test_a_row_may_be_made_of_others_without_training(
    trained: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = read_plan()
    made = (
        "predict --checkpoint {row:qd-detr}/a --checkpoint {next:qd-detr}/a --test {queries} --out {part}.x",
        "fuse {part}.x --out {out}",
    )
    row = Row("fused", make=made, seeds=(0, 1, 2))
    result = trained(replace(plan, rows={**plan.rows, "fused": row}), "fused")
    assert Fake.calls == ["predict", "fuse"] * 2  # for the test split and for the control
    runs = tmp_path / "work" / "esc10" / "runs"
    assert str(runs / "qd-detr.seed-1" / "a") in Fake.words[0]
    assert str(runs / "qd-detr.seed-2" / "a") in Fake.words[0]
    assert str(runs / "fused.seed-1" / "test-permuted.jsonl") in Fake.words[3]
    assert result["recipe"] == {"make": list(made)}
    assert result["minutes"] == {}


def test_a_row_may_ask_for_more_soups(
    trained: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "Commands", Fake)
    places = run.Places(tmp_path / "work", tmp_path / "results")
    data = sets.DataSet("esc10", tmp_path / "work" / "esc10")
    row = replace(read_plan().rows[PRETRAINED], soups=())
    for seed in (0, 1):
        folder = places.run("esc10", row.name, seed)
        folder.mkdir(parents=True)
        (folder / run.EXACT).write_text(f"predictions {seed}\n")

    def soups(row: Row) -> list[list[str]]:
        Fake.calls.clear()
        Fake.words.clear()
        chain.run_chain(row, data, (0, 1), places, again=False)
        return [words for verb, words in zip(Fake.calls, Fake.words, strict=True) if verb == "soup"]

    assert [words[2] for words in soups(row)] == ["--uniform"]
    assert soups(row) == []  # stored
    made = soups(replace(row, soups=("greedy", "fisher")))
    checkpoints = [str(places.run("esc10", row.name, s) / "finetune" / "best.safetensors") for s in (0, 1)]
    queries_and_features = [str(data.manifest("val")), "--features", str(data.features), "--overwrite"]
    assert made[1][:-2] == [*checkpoints, "--greedy", "--val", *queries_and_features]
    assert made[2][:-2] == [*checkpoints, "--fisher", "--fisher-data", *queries_and_features]
    told = json.loads((places.results / "esc10" / f"{row.name}.chain.json").read_text())
    assert [name for name in told["made"] if "soup" in name] == ["soup", "greedy soup", "fisher soup"]


def test_an_unfinished_run_of_other_settings_is_removed(
    trained: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = read_plan()
    folder = tmp_path / "work" / "esc10" / "runs" / f"{REFERENCE}.seed-1" / "finetune"
    folder.mkdir(parents=True)
    resolved = plan.resolved(plan.rows[REFERENCE], "esc10")["finetune"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    trained(plan)
    assert (folder / "recipe.yaml").is_file()  # its own: goes on there
    resolved["train"]["epochs"] = 7
    (folder / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    (tmp_path / "results" / "esc10" / f"{REFERENCE}.seed-1.json").unlink()
    trained(plan)
    assert not (folder / "recipe.yaml").exists()


def test_new_keys_do_not_make_a_stored_result_stale() -> None:
    assert run.same_settings({"a": [{"b": 1}]}, {"a": [{"b": 1, "new": 0}], "new": 2})
    assert not run.same_settings({"a": [{"b": 1}]}, {"a": [{"b": 2}]})
    assert not run.same_settings({"a": [1, 2]}, {"a": [1]})
    assert not run.same_settings({"a": 1}, {"b": 1})


def test_tables_hold_mean_spread_and_paired_test(tmp_path: Path) -> None:
    assert tables.mean_and_spread([10.0, 12.0, 14.0]) == "12.0 ± 2.0"
    assert tables.mean_and_spread([10.04]) == "10.0"
    results, page = tmp_path / "results", tmp_path / "page.md"
    folder = results / "esc10"
    folder.mkdir(parents=True)
    counts = {"queries": 1234, "recordings": 2, "moments": 3, "sha256": "0"}
    (folder / "data.json").write_text(
        json.dumps({"manifests": {"train": counts}, "commands": ["amrctl synth"]})
    )
    for seed, value in enumerate((40.0, 44.0)):
        entry = {
            "row": REFERENCE, "seed": seed, "metrics": dict.fromkeys(METRICS, value),
            "permuted": {"R1@0.7": 4.0}, "control": {"chance": 3.0},
            "minutes": {"finetune": 3.0}, "commands": ["amrctl finetune"],
        }  # fmt: skip
        (folder / f"{REFERENCE}.seed-{seed}.json").write_text(json.dumps(entry))
    told = {"difference": 1.25, "low": -0.5, "high": 3.0, "p": 0.0123, "beats": True}
    paired = {"row": "other", "reference": REFERENCE, "seeds": [0, 1]}
    (folder / "other.against.qd-detr.json").write_text(
        json.dumps({**paired, "metrics": {"R1@0.7": told, "mAP": {**told, "beats": False}}})
    )
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    assert main(["--tables", "--results", str(results), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "old" not in text
    cells = " | ".join(["42.0 ± 2.8"] * len(tables.METRICS))
    assert f"| `qd-detr` | 2 | {cells} | 4.0 ± 0.0 | 3.0 ± 0.0 | 3.0 |" in text
    assert (
        "| `other` | `qd-detr` | 2 | +1.2 (-0.5 to +3.0), p 0.012, **beats** | +1.2 (-0.5 to +3.0), p 0.012 |"
        in text
    )
    assert "| train | 2 | 1,234 | 3 |" in text
    assert "amrctl synth\namrctl finetune" in text


def test_stored_results_belong_to_the_frozen_data() -> None:
    """What is committed: three seeds of the reference on both sets, the control below ten, and in range."""
    plan = read_plan()
    for name in SETS:
        runs = tables.read_results(HERE / "results", name)[REFERENCE]
        assert [stored["seed"] for stored in runs] == list(plan.rows[REFERENCE].seeds)
        for stored in runs:
            assert run.same_settings(stored["recipe"], plan.resolved(plan.rows[REFERENCE], name))
            assert stored["permuted"]["R1@0.7"] < 10
    castella = tables.read_results(HERE / "results", "castella")[REFERENCE]
    assert 10 <= sum(stored["metrics"]["R1@0.7"] for stored in castella) / 3 <= 25


def test_control_by_hand() -> None:
    """Four events of which one is labelled, and two of which both are."""
    asked = [
        Query("a", "x", "v", 60.0, ((0.0, 10.0),)),
        Query("b", "y", "w", 60.0, ((0.0, 10.0), (20.0, 30.0))),
    ]
    known = {"v": [(0.0, 10.0), (20.0, 30.0), (40.0, 45.0), (50.0, 60.0)], "w": [(0.0, 10.0), (20.0, 30.0)]}

    def told(first: tuple[float, float], second: tuple[float, float]) -> dict[str, float]:
        answers = [
            Prediction(q.qid, q.query, q.vid, q.duration, np.array([[*w, 0.9], [0.0, 10.0, 0.1]]))
            for q, w in zip(asked, (first, second), strict=True)
        ]
        return control.against_chance(answers, manifest(asked), known)

    names = "labelled", "event", "chance", "above"
    assert tuple(map(told((20.0, 30.0), (20.0, 29.0)).get, names)) == (50.0, 100.0, 62.5, -12.5)
    assert tuple(map(told((0.0, 7.0), (11.0, 19.0)).get, names)) == (50.0, 50.0, 12.5, 37.5)
    nothing = told((30.0, 39.0), (0.0, 30.0))
    assert set(nothing.values()) == {0.0}


def test_every_stored_control_is_at_chance_or_below_ten() -> None:
    """With another query's sentence no row finds the labelled moments above chance, seeds averaged."""
    for name in SETS:
        for row, runs in tables.read_results(HERE / "results", name).items():
            told = [stored["control"] for stored in runs]
            for one, stored in zip(told, runs, strict=True):
                assert one["labelled"] == pytest.approx(stored["permuted"]["R1@0.7"], abs=0.01)
            low, labelled = (sum(one[key] for one in told) / len(told) for key in ("low", "labelled"))
            assert low < 0 or labelled < 10, (name, row)
