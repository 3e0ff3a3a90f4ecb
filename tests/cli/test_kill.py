"""kill -9 in the middle of every writing command leaves the old file or none, and the next run mends all."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amrctl.data.predictions import read_predictions
from amrctl.run_folder import RunFolder
from amrctl.training import state
from tests.training.tiny import make

if sys.platform == "win32":
    pytest.skip("forks and signals of POSIX systems", allow_module_level=True)
from tests.cli.killed import Job, Server

KILLED, FILE_TOO_LARGE = -9, -25
MOMENTS = 5  # how many file operations of a command are tried, spread over all of them
Tree = dict[str, bytes]

TRAIN = (
    "finetune --recipe {0}/tiny/tiny.yaml --train {0}/tiny/train.jsonl --val {0}/tiny/val.jsonl "
    "--features {0}/tiny/features.h5 --device cpu --precision fp32 --set train.epochs=2"
)
PREDICT = "predict --features {0}/tiny/features.h5 --test {0}/tiny/val.jsonl --round 0 --device cpu"
SYNTH = (
    "synth --events builtin --clips-per-kind 1 --recordings 3 --length 6 --events-per-recording 1 "
    "--max-event 2 --splits a=0.5,b=0.5 --workers 1"
)
RERANK = "rerank {0}/a.jsonl --features {0}/tiny/features.h5 --train {0}/tiny/train.jsonl --cache cache"
EXTRACT = (
    "extract-tef --audio {0}/syn/audio --audio-encoder logmel --text-encoder words --dtype float32 "
    "--workers 1 --manifest {0}/syn/"
)
PREPARED = (
    f"{TRAIN} --seeds 0-1 --out {{0}}/runs",
    f"{PREDICT} --checkpoint {{0}}/runs/seed-0 --out {{0}}/a.jsonl",
    f"{PREDICT} --checkpoint {{0}}/runs/seed-1 --out {{0}}/b.jsonl",
    "convert {0}/runs/seed-0 --out {0}/a.ckpt",
    "convert {0}/runs/seed-1 --out {0}/b.ckpt",
    f"{SYNTH} --out {{0}}/syn",
    f"{EXTRACT}a.jsonl --out {{0}}/a.h5",
    f"{EXTRACT}b.jsonl --out {{0}}/b.h5",
)


@dataclass(frozen=True)
class Case:
    """A command and another one that made what it replaces. `out`: what must be old, new or absent.

    `resumes`: finds its own finished work and says so, instead of refusing what exists.
    """

    name: str
    new: str
    old: str
    out: str
    resumes: bool = False
    beside: tuple[str, ...] = field(default=())  # belongs to `out` and goes with it


CASES = (
    Case("soup", "soup {0}/runs --uniform", "soup {0}/runs --weights 0.9,0.1", "soup.safetensors"),
    Case(
        "predict",
        f"{PREDICT} --checkpoint {{0}}/runs/seed-0",
        f"{PREDICT} --checkpoint {{0}}/runs/seed-1",
        "p.jsonl",
        beside=("p.jsonl.meta.json",),
    ),
    Case(
        "fuse",
        "fuse {0}/a.jsonl {0}/b.jsonl --wbf",
        "fuse {0}/a.jsonl {0}/b.jsonl --pool",
        "fused.jsonl",
        beside=("fused.jsonl.meta.json",),
    ),
    Case("rerank", RERANK, f"{RERANK} --beta 0.9", "r.jsonl", beside=("r.jsonl.meta.json",)),
    Case(
        "evaluate",
        "evaluate {0}/a.jsonl --test {0}/tiny/val.jsonl --resamples 100",
        "evaluate {0}/b.jsonl --test {0}/tiny/val.jsonl --resamples 100",
        "metrics.json",
    ),
    Case(
        "submit",
        "submit {0}/a.jsonl --queries {0}/tiny/val.jsonl --label A_B_task6_1",
        "submit {0}/b.jsonl {0}/a.jsonl --queries {0}/tiny/val.jsonl --label A_C_task6_1",
        "sub",
    ),
    Case("to-official", "convert {0}/runs/seed-0", "convert {0}/runs/seed-1", "out.ckpt"),
    Case("to-ours", "convert {0}/a.ckpt", "convert {0}/b.ckpt", "out.safetensors"),
    Case(
        "import",
        "extract-tef --audio-npz {0}/tiny/audio --text-npz {0}/tiny/text --name x "
        "--manifest {0}/tiny/val.jsonl",
        "extract-tef --audio-npz {0}/tiny/audio --text-npz {0}/tiny/text --name x "
        "--manifest {0}/tiny/train.jsonl",
        "imported.h5",
        resumes=True,
    ),
    Case("export", "extract-tef --export {0}/a.h5", "extract-tef --export {0}/b.h5", "npz"),
    Case("extract", f"{EXTRACT}a.jsonl", f"{EXTRACT}b.jsonl", "f.h5", resumes=True),
)


@dataclass(frozen=True)
class Place:
    """The prepared inputs, and the process that runs commands on them."""

    base: Path
    server: Server

    def job(self, command: str, out: str, folder: Path, *, overwrite: bool, **death: int) -> Job:
        words = [*command.format(self.base).split(), "--out", out, *(["--overwrite"] if overwrite else [])]
        return Job(words, str(folder), **death)

    def run(self, command: str, out: str, folder: Path, *, overwrite: bool = False, **death: int) -> int:
        return self.server.run(self.job(command, out, folder, overwrite=overwrite, **death)).code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("prepared")
    make(base / "tiny")
    server = Server()
    for command in PREPARED:
        done = server.run(Job(command.format(base).split(), str(base)))
        assert done.code == 0, done.said
    yield Place(base, server)
    server.close()


def tree(path: Path) -> Tree:
    """What lies at `path`: a file as itself, a folder as its files; nothing: empty."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def litter(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith((".tmp", ".part"))]


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count`, the first and the last among them."""
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def deaths(events: int, new: Tree, wanted: int = MOMENTS) -> list[dict[str, int]]:
    """Before file operations, and in the middle of writing the largest file."""
    return [*({"event": k} for k in spread(events, wanted)), {"size": max(map(len, new.values())) // 2}]


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_old_file_or_none(place: Place, tmp_path: Path, case: Case, overwrite: bool) -> None:
    before, whole = tmp_path / "before", tmp_path / "whole"
    before.mkdir()
    if overwrite:
        assert place.run(case.old, case.out, before) == 0
    shutil.copytree(before, whole)
    done = place.server.run(place.job(case.new, case.out, whole, overwrite=overwrite))
    assert done.code == 0, done.said
    names = (case.out, *case.beside)
    old, new = ([tree(folder / name) for name in names] for folder in (before, whole))
    assert old != new
    assert all(new)
    assert litter(whole) == []

    for number, death in enumerate(deaths(done.events, new[0])):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        code = place.run(case.new, case.out, folder, overwrite=overwrite, **death)
        assert code == (FILE_TOO_LARGE if "size" in death else KILLED), death
        found = [tree(folder / name) for name in names]
        if found[0]:
            assert found in (old, new), death
        else:
            assert not (folder / case.out).exists(), death

        again = place.server.run(place.job(case.new, case.out, folder, overwrite=overwrite))
        if found[0] and not overwrite and not case.resumes:
            assert (again.code, "exists; choose another --out" in again.said) == (2, True)
            shutil.rmtree(folder / case.out, ignore_errors=True)
            (folder / case.out).unlink(missing_ok=True)
            again = place.server.run(place.job(case.new, case.out, folder, overwrite=overwrite))
        assert again.code == 0, (death, again.said)
        assert [tree(folder / name) for name in names] == new, death
        assert litter(folder) == [], death


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_synthesis_shows_whole_files_only(place: Place, tmp_path: Path, overwrite: bool) -> None:
    """Its folder fills up as it works: every file is whole, a manifest comes when all its recordings are
    there, and the same command ends with the same bytes."""
    before, whole = tmp_path / "before", tmp_path / "whole"
    before.mkdir()
    if overwrite:
        assert place.run(f"{SYNTH} --seed 1", "syn", before) == 0
    shutil.copytree(before, whole)
    done = place.server.run(place.job(SYNTH, "syn", whole, overwrite=overwrite))
    assert done.code == 0, done.said
    old, new = tree(before / "syn"), tree(whole / "syn")
    for number, death in enumerate(deaths(done.events, new, 7)):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        code = place.run(SYNTH, "syn", folder, overwrite=overwrite, **death)
        assert code == (FILE_TOO_LARGE if "size" in death else KILLED), death
        found = tree(folder / "syn")
        visible = {name: data for name, data in found.items() if not Path(name).name.startswith(".")}
        for name, data in visible.items():
            assert data in (old.get(name), new[name]), (death, name)
        for name in ("a.jsonl", "b.jsonl"):
            sounds = {key: data for key, data in visible.items() if key.endswith(".flac")}
            whole_set = [t for t in (old, new) if found.get(name) == t.get(name) and name in t]
            if name in found:
                assert any(all(t.get(k) == v for k, v in sounds.items()) for t in whole_set), (death, name)
        assert place.run(SYNTH, "syn", folder, overwrite=overwrite) == 0, death
        assert tree(folder / "syn") == new, death


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_training_leaves_readable_files_and_ends_with_the_same_bits(
    place: Place, tmp_path: Path, overwrite: bool
) -> None:
    before, whole = tmp_path / "before", tmp_path / "whole"
    before.mkdir()
    if overwrite:
        assert place.run(f"{TRAIN} --seed 1", "run", before) == 0
    shutil.copytree(before, whole)
    done = place.server.run(place.job(TRAIN, "run", whole, overwrite=overwrite))
    assert done.code == 0, done.said
    weights = ("last.safetensors", "best.safetensors", "best.mAP.safetensors")
    wanted = {name: load_file(whole / "run" / name) for name in weights}
    chosen = [*({"event": k} for k in spread(done.events, 4))]
    chosen.append({"size": (whole / "run" / "state.pt").stat().st_size // 2})
    for number, death in enumerate(chosen):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        code = place.run(TRAIN, "run", folder, overwrite=overwrite, **death)
        assert code == (FILE_TOO_LARGE if "size" in death else KILLED), death
        run = RunFolder(folder / "run")
        for path in run.files() if run.path.exists() else []:
            READERS[path.suffix](path)

        again = place.server.run(place.job(TRAIN, "run", folder, overwrite=overwrite))
        assert again.code == 0, (death, again.said)
        for name, tensors in wanted.items():
            found = load_file(run.path / name)
            assert all(torch.equal(found[key], tensors[key]) for key in tensors), (death, name)
        assert litter(folder) == [], death
        assert {p.name for p in run.files()} == {p.name for p in RunFolder(whole / "run").files()}


def _png(path: Path) -> None:
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def _lines(path: Path) -> None:
    if path.name == "val_predictions.jsonl":
        assert len(read_predictions(path)) == 6
    else:
        assert path.read_text().endswith("}\n")


def _text(path: Path) -> None:
    assert path.read_text().endswith("\n")


READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    ".pt": state.read,
    ".png": _png,
    ".jsonl": _lines,
    ".json": _text,
    ".yaml": _text,
}
