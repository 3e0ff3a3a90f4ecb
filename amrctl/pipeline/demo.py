"""The whole chain on an embedded data set, as the commands a newcomer would type."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amrctl.data.manifest import read_manifest

RECIPE = "qd-detr-small"
LABEL = "Demo_Amrctl_task6_1"


@dataclass(frozen=True)
class Size:
    """How much the demo does; the default takes two to three minutes on two cores."""

    pretrain_recordings: int = 200
    recordings: int = 280
    pretrain_length: int = 40  # seconds
    length: int = 60  # seconds; with one moment a query, no fixed window is right often
    pretrain_epochs: int = 18
    finetune_epochs: int = 10
    seeds: str = "0-1"


@dataclass(frozen=True)
class Step:
    """One command: why, what, and what it leaves."""

    title: str
    arguments: tuple[str, ...]
    makes: tuple[Path, ...]

    @property
    def command(self) -> str:
        """The command as it would be typed."""
        return shlex.join(("amrctl", *self.arguments))


@dataclass(frozen=True)
class Plan:
    """The steps in order, and the prediction files that the closing table compares."""

    steps: tuple[Step, ...]
    compared: dict[str, Path]
    test: Path


def plan(out: Path, size: Size, seed: int = 0) -> Plan:
    """All commands up to the submission; the search needs a recording and is `search_step`."""
    pre, data, features = out / "pretrain-data", out / "data", out / "features.h5"
    train, val, test = (data / f"{split}.jsonl" for split in ("train", "val", "test"))
    pre_train, pre_val = pre / "train.jsonl", pre / "val.jsonl"
    pre_run, runs, soup = out / "pretrain", out / "finetune", out / "soup.safetensors"
    predictions, results = out / "predictions", out / "results"
    mix = ["--snap", "--snr", "10-25"]
    steps: list[Step] = []

    def step(title: str, *arguments: object, makes: tuple[Path, ...]) -> None:
        steps.append(Step(title, tuple(map(str, arguments)), makes))

    step(
        "Mix a pre-training set from the embedded sound bank",
        "synth", "--events", "builtin", "--recordings", size.pretrain_recordings,
        "--length", size.pretrain_length, "--events-per-recording", "2-4", "--repeats", "1-2", *mix,
        "--splits", "train=0.9,val=0.1", "--prefix", "pre",
        "--seed", seed + 1, "--out", pre,
        makes=(pre_train, pre_val),
    )  # fmt: skip
    step(
        "Mix the target set; its test split shares no clip with the others",
        "synth", "--events", "builtin", "--recordings", size.recordings,
        "--length", size.length, "--events-per-recording", "3-4", *mix,
        "--splits", "train=0.52,val=0.13,test=0.35", "--prefix", "demo",
        "--seed", seed, "--out", data,
        makes=(train, val, test),
    )  # fmt: skip
    for manifests, folder in (((pre_train, pre_val), pre), ((train, val, test), data)):
        file = features if folder == data else out / "pretrain-features.h5"
        step(
            "Turn sound and sentences into features with the embedded encoders",
            "extract-tef", "--manifest", *manifests, "--audio", folder / "audio",
            "--audio-encoder", "logmel", "--text-encoder", "words", "--out", file,
            makes=(file,),
        )  # fmt: skip
    step(
        "Pre-train the detector",
        "pretrain", "--recipe", RECIPE, "--train", pre_train, "--val", pre_val,
        "--features", out / "pretrain-features.h5", "--set", f"train.epochs={size.pretrain_epochs}",
        "--seed", seed, "--out", pre_run,
        makes=(),
    )  # fmt: skip
    step(
        "Fine-tune it with two seeds",
        "finetune", "--recipe", RECIPE, "--init", pre_run / "best.safetensors", "--train", train,
        "--val", val, "--features", features, "--set", f"train.epochs={size.finetune_epochs}",
        "--seeds", size.seeds, "--out", runs,
        makes=(),
    )  # fmt: skip
    step("Average the two seeds' weights", "soup", runs, "--uniform", "--out", soup, makes=(soup,))
    compared: dict[str, Path] = {}
    members: list[Path] = []
    first, last = size.seeds.split("-")
    for name, checkpoint in (
        *((f"seed-{n}", runs / f"seed-{n}" / "best.safetensors") for n in range(int(first), int(last) + 1)),
        ("soup", soup),
    ):
        path = predictions / f"{name}.jsonl"
        compared[name] = path
        if name != "soup":
            members.append(path)
        step(
            f"Answer the test queries ({name})",
            "predict", "--checkpoint", checkpoint, "--features", features, "--test", test,
            "--round", 0, "--out", path,
            makes=(path,),
        )  # fmt: skip
    compared["fused"] = predictions / "fused.jsonl"
    step(
        "Fuse the two seeds' windows",
        "fuse", *members, "--wbf", "--out", compared["fused"],
        makes=(compared["fused"],),
    )  # fmt: skip
    compared["reranked"] = predictions / "reranked.jsonl"
    step(
        "Let a text-audio similarity judge the fused windows",
        "rerank", compared["fused"], "--verifier", "similarity", "--features", features,
        "--train", train, "--beta", "0.2", "--top-k", 10, "--cache", out / "rerank-cache",
        "--out", compared["reranked"],
        makes=(compared["reranked"],),
    )  # fmt: skip
    for name, path in compared.items():
        against = ["--against", compared["seed-0"]] if name != "seed-0" else []
        step(
            f"Score it ({name})",
            "evaluate", path, "--test", test, *against, "--out", results / f"{name}.json",
            makes=(results / f"{name}.json",),
        )  # fmt: skip
    step(
        "Pack a challenge submission",
        "submit", compared["soup"], compared["fused"], "--queries", test, "--label", LABEL,
        "--development-scores", results / "soup.json", results / "fused.json",
        "--out", out / "submission",
        makes=(out / "submission",),
    )  # fmt: skip
    return Plan(tuple(steps), compared, test)


def search_step(out: Path, test: Path) -> Step:
    """Search a test recording for the sentence of its first query."""
    query = read_manifest(test).queries[0]
    audio = out / "data" / "audio" / f"{query.vid}.flac"
    return Step(
        "Search one recording for any sentence",
        ("search", str(audio), query.query, "--checkpoint", str(out / "soup.safetensors")),
        (),
    )


def results(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """The `brief` block and extras of every compared prediction file."""
    table = {}
    for name in plan.compared:
        found = json.loads((out / "results" / f"{name}.json").read_text(encoding="utf-8"))
        table[name] = {**found["brief"], **found.get("extra", {})}
    return table
