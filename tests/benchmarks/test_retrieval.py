"""The retrieval benchmark asks for sounds and by sentences that training did not have."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.retrieval import CAPTIONS, UNSEEN, write_lists


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_test_split_shares_neither_sounds_nor_sentences(tmp_path: Path) -> None:
    classes = list(yaml.safe_load(CAPTIONS.read_text(encoding="utf-8")))
    rows = [
        (f"{kind}-{fold}-{i}.ogg", kind, fold) for kind in classes for fold in range(1, 6) for i in range(3)
    ]
    with open(tmp_path / "clips.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("file", "class", "fold"), *rows])
    counts = write_lists(tmp_path / "clips.csv", tmp_path / "out")
    lists = {split: read(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert counts == {split: len(found) for split, found in lists.items()}
    assert counts["train"] == 2 * counts["val"] > 0  # folds 1 and 2 against fold 3; fold 5 plays no part
    for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not {line["vid"] for line in lists[one]} & {line["vid"] for line in lists[two]}
    heard = {line["caption"] for split in ("train", "val") for line in lists[split]}
    relevant = read(tmp_path / "out" / "relevant.jsonl")
    asked = {line["query"] for line in relevant}
    assert asked == {line["caption"] for line in lists["test"]}
    assert not asked & heard
    assert len(relevant) == UNSEEN * len(classes)
    assert sorted(vid for line in relevant for vid in line["relevant"]) == sorted(
        2 * [Path(name).stem for name, _, fold in rows if fold == 4]
    )
