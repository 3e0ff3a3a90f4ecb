"""The feature file: what is put in comes out, kills lose nothing, faults are told."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import FeatureFile, Rows
from amrctl.data.tef import tef_2d, tef_3d
from amrctl.errors import FeatureError, OutputError

ATTRS = {"encoder": "toy", "window": 1.0, "hop": 0.5, "sample_rate": 32000, "checkpoint": None, "space": "s"}


def rows_of(id: str, dim: int = 3) -> Rows:
    """Rows that depend on the id alone."""
    rng = np.random.default_rng(list(id.encode()))
    return rng.standard_normal((int(rng.integers(1, 9)), dim)).astype(np.float32)


def extract(out: Path, ids: list[str], name: str = "toy", *, overwrite: bool = False, **options: Any) -> None:
    writer = FeatureWriter(out, {"encoder": name, **options}, overwrite, [("audio", name), ("text", name)])
    for id in ids:
        writer.put("audio", name, id, rows_of(id))
        writer.put("text", name, "q" + id, rows_of("q" + id, 2), np.arange(4.0) + len(id))
    writer.finish(
        [
            StreamSpec("audio", name, ids, ATTRS),
            StreamSpec("text", name, ["q" + id for id in ids], {"encoder": name}),
        ],
        {"2d": tef_2d, "3d": tef_3d},
    )


IDS = ["-0awng26xQ8", "b/../../c", "ド" * 80, "x" * 300, "a", "A"]


def test_what_is_put_in_comes_out(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    extract(out, IDS)
    assert [p.name for p in tmp_path.iterdir()] == ["F.h5"]
    with FeatureFile(out) as file:
        assert file.ids("audio", "toy") == IDS
        info = file.resolve("audio", "auto")
        assert (info.name, info.dim, info.count, info.dtype) == ("toy", 3, len(IDS), "float16")
        assert (info.window, info.hop, info.sample_rate, info.encoder) == (1.0, 0.5, 32000, "toy")
        assert (info.checkpoint, info.space, info.pooled) == (None, "s", None)
        packed = file.load("audio", "toy")
        for id in IDS:
            assert np.array_equal(packed.get(id), rows_of(id).astype(np.float16))
            ends = file.load("tef", "3d", [id]).get(id)
            assert np.array_equal(ends, tef_3d(len(rows_of(id))))
        assert file.lengths("audio", "toy") == {id: len(rows_of(id)) for id in IDS}
        vectors = file.pooled("toy", ["qa", "q" + IDS[2], "qa"])
        assert vectors is not None
        assert vectors.tolist() == [[1, 2, 3, 4], [80, 81, 82, 83], [1, 2, 3, 4]]
        assert file.resolve("text", "toy").pooled == 4
    assert packed.get("a").shape == rows_of("a").shape  # arrays outlive the file
    with pytest.raises(FeatureError, match="'zz' is not among the 6 loaded"):
        packed.get("zz")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.sampled_from(IDS)))
def test_a_part_equals_the_same_part_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[str]
) -> None:
    out = tmp_path_factory.getbasetemp() / "whole.h5"
    if not out.exists():
        extract(out, IDS, dtype="float32")
    with FeatureFile(out) as file:
        part = file.load("audio", "toy", wanted)
        assert list(part.index) == list(dict.fromkeys(wanted))
        assert len(part.rows) == sum(len(rows_of(id)) for id in set(wanted))
        for id in wanted:
            assert np.array_equal(part.get(id), rows_of(id))


def test_encoders_are_added_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["a", "b"])
    extract(out, ["b"], "other", dtype="float32")
    with FeatureFile(out) as file:
        assert list(file.streams("audio")) == ["other", "toy"]
        assert np.array_equal(file.load("audio", "toy").get("a"), rows_of("a").astype(np.float16))
        assert np.array_equal(file.load("audio", "other").get("b"), rows_of("b"))
        assert file.ids("tef", "2d") == ["a", "b"]  # of the stream that came first
        with pytest.raises(FeatureError, match=r"2 audio streams \(other, toy\); name one"):
            file.resolve("audio", "auto")
    with pytest.raises(OutputError, match="has audio stream 'toy' already"):
        extract(out, ["a"], extra=1)
    assert not (tmp_path / "F.h5.part").exists()
    extract(out, ["c"], extra=1, overwrite=True)
    with FeatureFile(out) as file:
        assert (file.ids("audio", "toy"), file.ids("audio", "other")) == (["c"], ["b"])
        assert file.ids("tef", "2d") == ["c"]


def test_equal_work_makes_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        extract(tmp_path / name / "F.h5", IDS)
        extract(tmp_path / name / "F.h5", ["b"], "other")
        time.sleep(1.1)  # a time stamp of whole seconds would differ
    assert (tmp_path / "one" / "F.h5").read_bytes() == (tmp_path / "two" / "F.h5").read_bytes()


def test_a_finished_extraction_is_recognised(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["a"])
    (tmp_path / "F.h5.part").mkdir()  # a kill after the rename leaves it
    same = FeatureWriter(out, {"encoder": "toy"}, False, [("audio", "toy")])
    assert same.finished
    assert not same.part.exists()
    assert not FeatureWriter(out, {"encoder": "toy"}, True, [("audio", "toy")]).finished


def test_interrupted_work_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    writer = FeatureWriter(out, {"encoder": "toy", "n": [1]}, False)
    writer.put("audio", "toy", "a", rows_of("a"))
    writer.close()
    again = FeatureWriter(out, {"n": [1], "encoder": "toy"}, False)
    assert again.done("audio", "toy") == {"a"}
    assert again.done("text", "toy") == set()
    again.close()
    with pytest.raises(
        FeatureError, match=r'F.h5.part .*n was \[1\], is \[2\], dtype was null, is "float32".*--overwr'
    ):
        FeatureWriter(out, {"encoder": "toy", "n": [2], "dtype": "float32"}, False)
    with pytest.raises(FeatureError, match=r"F.h5 does not exist \(its extraction was interrupted"):
        FeatureFile(out)
    anew = FeatureWriter(out, {"encoder": "toy", "n": [2]}, True)
    assert anew.done("audio", "toy") == set()
    anew.close()


def test_ids_come_back_from_file_names(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "F.h5", {}, False)
    copy: FeatureWriter = pickle.loads(pickle.dumps(writer))  # as worker processes get it
    for id in IDS:
        copy.put("text", "t", id, rows_of(id))
    assert writer.done("text", "t") == set(IDS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["F.h5.part"]


def test_two_extractions_at_once_are_refused(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom amrctl.data.feature_writer import FeatureWriter\n"
        "w = FeatureWriter(sys.argv[1], {}, False)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    out = tmp_path / "F.h5"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another extraction is writing"):
            FeatureWriter(out, {}, False)
        other.kill()
    FeatureWriter(out, {}, False).close()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.full((2, 2), 65505.0), "65505 does not fit float16; add --dtype float32"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.zeros((0, 3)), "2-dimensional rows"),
        (np.zeros(3), "2-dimensional rows"),
        (np.zeros((3, 2), np.int64), "int64"),
    ],
)
def test_rows_that_cannot_be_stored(tmp_path: Path, rows: Any, words: str) -> None:
    writer = FeatureWriter(tmp_path / "F.h5", {}, False)
    with pytest.raises(FeatureError, match=f"audio stream 'toy', 'id7'.*{words}"):
        writer.put("audio", "toy", "id7", rows)
    with pytest.raises(FeatureError, match="NUL"):
        writer.put("audio", "toy", "a\0", np.ones((1, 1)))
    assert writer.done("audio", "toy") == set()


def test_largest_float16_and_float32(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "F.h5", {"dtype": "float32"}, False)
    writer.put("audio", "toy", "a", np.array([[65505.0, 1e-30]]))
    writer.finish([StreamSpec("audio", "toy", ["a"])])
    with FeatureFile(tmp_path / "F.h5") as file:
        assert np.array_equal(file.load("audio", "toy").rows, np.array([[65505.0, 1e-30]], np.float32))
    with pytest.raises(FeatureError, match="--dtype int8: write float16 or float32"):
        FeatureWriter(tmp_path / "G.h5", {"dtype": "int8"}, False)
    for name in ("", "..", "a/b", "auto"):
        with pytest.raises(FeatureError, match="cannot name a feature stream"):
            FeatureWriter(tmp_path / "G.h5", {}, False, [("audio", name)])


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    writer = FeatureWriter(out, {}, False)
    writer.put("audio", "toy", "a", rows_of("a"))
    with pytest.raises(FeatureError, match="'b' and 1 more are not extracted yet"):
        writer.finish([StreamSpec("audio", "toy", ["a", "b", "c"])])
    writer.put("audio", "toy", "b", rows_of("b", 5))
    with pytest.raises(FeatureError, match=r"'a' has width 3 .* and 'b' 5"):
        writer.finish([StreamSpec("audio", "toy", ["a", "b"])])
    for path in (writer.part / "audio" / "toy").iterdir():
        path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(FeatureError, match="is damaged and was removed; run the same command again"):
        writer.finish([StreamSpec("audio", "toy", ["a", "b"])])
    assert writer.done("audio", "toy") == {"b"}
    assert not out.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
left = int(sys.argv[2])
def count(call):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left < 0: os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return counted
os.replace, Path.replace, os.fsync = count(os.replace), count(Path.replace), count(os.fsync)
Path.unlink, Path.mkdir = count(Path.unlink), count(Path.mkdir)
import h5py, shutil
h5py.File.create_group, h5py.File.close = count(h5py.File.create_group), count(h5py.File.close)
shutil.rmtree = count(shutil.rmtree)
from tests.data.test_features import extract
extract(Path(sys.argv[1]), ["a", "b"], "toy", overwrite=True, n=1)
print("done")
"""


@pytest.mark.parametrize("before", [False, True])
def test_sigkill_anywhere_leaves_the_old_file_or_none(tmp_path: Path, before: bool) -> None:
    root = str(Path(__file__).parents[2])
    for kill in itertools.count(1, 5):
        out = tmp_path / f"{kill}" / "F.h5"
        out.parent.mkdir()
        if before:
            extract(out, ["old"])
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(out), str(kill)],
            capture_output=True,
            text=True,
            cwd=root,
            check=False,
        )
        state = None
        if out.exists():
            with FeatureFile(out) as file:
                state = file.ids("audio", "toy")
        if run.returncode == 0:
            assert (run.stdout, state) == ("done\n", ["a", "b"])
            break
        assert run.returncode == -9, run.stderr
        assert state == ["a", "b"] or state == (["old"] if before else None)
        extract(out, ["a", "b"], overwrite=True, n=1)  # the next run goes on and cleans up
        assert [p.name for p in out.parent.iterdir()] == ["F.h5"]
        with FeatureFile(out) as file:
            assert file.ids("audio", "toy") == ["a", "b"]
    assert kill > 20


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["old"], "kept")
    writer = FeatureWriter(out, {}, False)
    writer.put("audio", "toy", "a", np.ones((1000, 600)))  # 1.2 MB as float16
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 << 20))
    with pytest.raises(OutputError, match=r"cannot write in .*: 0.00 GiB are needed, 0.00 are free"):
        writer.finish([StreamSpec("audio", "toy", ["a"])])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["F.h5", "F.h5.part"]
    monkeypatch.undo()
    writer.finish([StreamSpec("audio", "toy", ["a"])])
    with FeatureFile(out) as file:
        assert list(file.streams("audio")) == ["kept", "toy"]


def test_packing_holds_one_recording_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    writer = FeatureWriter(out, {}, False)
    block = np.ones((2000, 512), np.float32)  # 2 MB as stored
    for i in range(40):
        writer.put("audio", "toy", str(i), block)
    writer.close()
    program = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from amrctl.data.feature_writer import FeatureWriter, StreamSpec\n"
        "w = FeatureWriter(Path(sys.argv[1]), {}, False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "w.finish([StreamSpec('audio', 'toy', [str(i) for i in range(40)])])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=True
    )
    grown = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert out.stat().st_size > 80e6
    assert grown < 25e6


def test_all_streams_that_a_recipe_lacks_come_with_one_command(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["a", "b"])
    with FeatureFile(out) as file:
        file.require({"audio": ["auto", "toy"], "text": ["toy"]})
        with pytest.raises(FeatureError) as caught:
            file.require({"audio": ["toy", "ms-clap", "wavlm-base-plus"], "text": ["words"]})
        assert str(caught.value) == (
            f"{out} lacks the streams audio 'ms-clap', audio 'wavlm-base-plus', text 'words'; add them: "
            "amrctl extract-tef --manifest M.jsonl --audio DIR --audio-encoder ms-clap:WEIGHTS "
            f"--audio-encoder wavlm-base-plus --text-encoder words --out {out}"
        )
        with pytest.raises(FeatureError, match="no text stream 'wrods'"):  # no encoder: told one by one
            file.require({"text": ["wrods", "words"]})


def test_loading_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["a", "b"])
    with FeatureFile(out) as file:
        with pytest.raises(FeatureError, match=r"audio stream 'toy' has no 'y' \(2 of 3 missing\)"):
            file.load("audio", "toy", ["a", "y", "z", "y"])
        with pytest.raises(FeatureError, match="no audio stream 'tox'; did you mean 'toy'"):
            file.load("audio", "tox")
        with pytest.raises(
            FeatureError, match=r"no text stream 'words'; there is: toy; add one: .*--text-encoder words"
        ):
            file.resolve("text", "words")
        with pytest.raises(FeatureError, match="--audio-npz DIR --name simulated --out"):
            file.resolve("audio", "simulated")
        with pytest.raises(FeatureError, match="no audio stream 'toy/rows'"):
            file.load("audio", "toy/rows")


def _damage(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(str(path), "r+") as file:
            change(file)

    return apply


def _set(file: Any, key: str, value: Any) -> None:
    file.attrs[key] = value


def _offsets(file: Any, values: list[int]) -> None:
    del file["audio/toy/offsets"]
    file["audio/toy/offsets"] = values


def _delete(file: Any, key: str) -> None:
    del file[key]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"hello"), "is not a readable HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is not a readable HDF5 file"),
        (_damage(lambda f: _set(f, "format", "x")), "is not an amrctl feature file"),
        (_damage(lambda f: _set(f, "version", 2)), "has format version 2, this program reads 1"),
        (_damage(lambda f: _set(f, "complete", False)), "is not complete"),
        (_damage(lambda f: _delete(f, "audio/toy/ids")), "'toy' is damaged"),
        (_damage(lambda f: _offsets(f, [0, 5, 3])), "'toy' is damaged"),
        (_damage(lambda f: _offsets(f, [0, 1])), "'toy' is damaged"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    out = tmp_path / "F.h5"
    extract(out, ["a", "b"])
    damage(out)
    with pytest.raises(FeatureError, match=words), FeatureFile(out) as file:
        file.streams("audio")
    with pytest.raises(OutputError, match="--overwrite"):
        extract(out, ["a"])


def test_a_folder_is_no_feature_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path()):
        with pytest.raises(FeatureError, match="is a folder, not a feature file"):
            FeatureFile(path)
    with pytest.raises(FeatureError, match="names no file"):
        FeatureWriter(Path(), {"encoder": "toy"}, False)
