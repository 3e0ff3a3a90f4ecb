"""`retrieval-small` trained from scratch on ESC-10, asked by sentences that it never saw.

    python -m benchmarks.retrieval --data DATA --out FOLDER [--seeds 0-2] [--set KEY=VALUE ...]

DATA holds `esc10` (`clips.csv` with file, class and fold, and `audio/`). Clips of folds 1 and 2 are
trained on, fold 3 chooses the epoch, fold 4 is asked. Of the eight paraphrases of each class the first six
belong to training and validation, the last two to the test. A clip of the test is relevant to a sentence
when it is of the sentence's class (8 of 80), which is the set of labels that counts; chance is the
expected score of a random order.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

CAPTIONS = Path(__file__).parent / "accuracy" / "captions.yaml"
SPLITS = {"1": "train", "2": "train", "3": "val", "4": "test"}
UNSEEN = 2  # paraphrases of each class that only the test asks
METRICS = ("mAP@10", "mAP@16", "R@1", "R@5", "R@10")


def write_lists(clips: Path, out: Path) -> dict[str, int]:
    """Write the lists of captions and `relevant.jsonl`; how many captions are in each."""
    captions: dict[str, list[str]] = yaml.safe_load(CAPTIONS.read_text(encoding="utf-8"))
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    members: dict[str, list[str]] = {}
    with open(clips, encoding="utf-8", newline="") as stream:
        for clip in csv.DictReader(stream):
            split = SPLITS.get(clip["fold"])
            if split is None:
                continue
            vid = Path(clip["file"]).stem
            texts = captions[clip["class"]]
            if split == "test":
                members.setdefault(clip["class"], []).append(vid)
                # each clip is asked for once a paraphrase in `relevant`; here it needs one line to be there
                texts = [texts[-UNSEEN:][len(members[clip["class"]]) % UNSEEN]]
            else:
                texts = texts[:-UNSEEN]
            lines[split] += [json.dumps({"vid": vid, "caption": text}) for text in texts]
    out.mkdir(parents=True, exist_ok=True)
    for split, found in lines.items():
        (out / f"{split}.jsonl").write_text("\n".join(found) + "\n", encoding="utf-8")
    relevant = [
        json.dumps({"query": text, "relevant": vids})
        for name, vids in members.items()
        for text in captions[name][-UNSEEN:]
    ]
    (out / "relevant.jsonl").write_text("\n".join(relevant) + "\n", encoding="utf-8")
    return {split: len(found) for split, found in lines.items()}


def run(*words: object) -> None:
    """One amrctl command; its messages go to stderr."""
    subprocess.run([sys.executable, "-m", "amrctl", *map(str, words)], check=True, stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each seed, predict and evaluate; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="sets", action="append", default=[])
    asked = parser.parse_args(arguments)
    out, sounds = asked.out, asked.data / "esc10" / "audio"
    print(write_lists(asked.data / "esc10" / "clips.csv", out), file=sys.stderr)
    sets = [word for item in asked.sets for word in ("--set", item)]
    rows = []
    for seed in asked.seeds:
        folder, began = out / f"seed-{seed}", time.monotonic()
        lists = ("--train", out / "train.jsonl", "--val", out / "val.jsonl", "--audio", sounds)
        run("finetune", "--recipe", "retrieval-small", *lists, *sets, "--seed", seed, "--out", folder)
        seconds = time.monotonic() - began
        scores = folder / "test.h5"
        run(
            "predict", "--checkpoint", folder, "--test", out / "test.jsonl", "--audio", sounds,
            "--out", scores, "--overwrite",
        )  # fmt: skip
        report = folder / "test.json"
        run("evaluate", scores, "--relevant", out / "relevant.jsonl", "--out", report, "--overwrite")
        rows.append((seed, seconds, json.loads(report.read_text(encoding="utf-8"))["sets"][-1]))
    print(f"| seed | {' | '.join(METRICS)} | seconds |")
    print("|" + "---|" * (len(METRICS) + 2))
    for seed, seconds, told in rows:
        shown = " | ".join(f"{told['metrics'][name]:.1f}" for name in METRICS)
        print(f"| {seed} | {shown} | {seconds:.0f} |")
    chance = rows[0][2]["guessing"]
    print(f"| guessing | {' | '.join(f'{chance[name]:.1f}' for name in METRICS)} | |")


if __name__ == "__main__":
    main()
