"""An archive that is kept up to date equals one that is built anew, and nothing is heard twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl.archive import build, store
from amrctl.archive.build import index
from amrctl.archive.request import Indexed, IndexRequest, Wanted
from amrctl.data.framing import encode_file
from amrctl.encoders.base import load_audio_encoder
from amrctl.errors import AmrctlError, OutputError
from amrctl.progress import Bar, Reporter
from tests.archive.pair import RATE, TONES, Ear, begin, pair, tree, write
from tests.cli.killed import count

assert pair  # a fixture
LOGMEL = Wanted("logmel", "logmel", "float16", 1.0, 1.0, None)


def make(folder: Path, out: Path, pair: str, **change: object) -> Indexed:
    options: dict[str, object] = {
        "audio_encoder": pair,
        "window": 2.0,
        "hop": 1.0,
        "features": (LOGMEL,),
        "nearest_from": 20,
        **change,
    }
    return index(IndexRequest(folder, out, **options))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, word in enumerate([*TONES, "low", "high"]):
        write(tmp_path / "sounds" / f"{i // 2}" / f"rec{i}.wav", word, 5 + i, seed=i)
    return tmp_path / "sounds"


def test_rows_are_those_of_the_encoder(folder: Path, tmp_path: Path, pair: str) -> None:
    done = make(folder, tmp_path / "a", pair, dtype="float32")
    vectors = np.load(tmp_path / "a" / done.archive.vectors)
    ear = load_audio_encoder(pair, window=2.0, hop=1.0)
    rows = [encode_file(folder / r.path, ear) for r in done.archive.recordings]
    assert [r.windows for r in done.archive.recordings] == [len(piece) for piece in rows] == [5, 6, 7, 8, 9]
    wanted = np.concatenate(rows)
    np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    stored = np.load(
        tmp_path / "a/features" / done.archive.features[0].key / f"{done.archive.recordings[0].sha256}.npy"
    )
    assert stored.shape == (5, 229)
    assert stored.dtype == np.float16
    assert done.archive.recordings[0].path == "0/rec0.wav"
    assert done.heard == sum(range(5, 10))
    assert done.archive.folder == "../sounds"


Change = tuple[str, int]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "change", "remove", "rename", "copy", "touch"]), st.integers(0, 9)),
    min_size=1,
    max_size=5,
)


def change(folder: Path, what: str, which: int) -> None:
    """One change of the folder; some recording is always left."""
    there = sorted(path for path in folder.rglob("*.wav"))
    path = there[which % len(there)]
    word = list(TONES)[which % 3]
    new = folder / "new" / f"n{which}-{len(there)}.wav"
    new.parent.mkdir(exist_ok=True)
    if what == "add":
        write(new, word, 3, seed=100 + which)
    elif what == "change":
        write(path, word, 4 + which / 10, seed=200 + which)
    elif what == "remove" and len(there) > 1:
        path.unlink()
    elif what == "rename":
        path.rename(new)
    elif what == "copy" and not new.exists():
        shutil.copyfile(path, new)
    elif what == "touch":
        os.utime(path, ns=(which, 10**18 + which))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(CHANGES, min_size=1, max_size=2))
def test_updated_equals_built_anew(
    tmp_path_factory: pytest.TempPathFactory, pair: str, rounds: list[list[Change]]
) -> None:
    root = tmp_path_factory.mktemp("update")
    for i, word in enumerate(TONES):
        write(root / "sounds" / f"rec{i}.wav", word, 3 + i, seed=i)
    make(root / "sounds", root / "a", pair, nearest_from=8)
    for changes in rounds:
        for what, which in changes:
            change(root / "sounds", what, which)
        make(root / "sounds", root / "a", pair, nearest_from=8)
    make(root / "sounds", root / "anew", pair, nearest_from=8)
    assert tree(root / "a") == tree(root / "anew")


def test_only_what_is_new_is_heard(folder: Path, tmp_path: Path, pair: str) -> None:
    out = tmp_path / "a"
    first = make(folder, out, pair)
    assert (first.added, first.kept, first.fresh) == (5, 0, True)
    before, heard = tree(out), Ear.heard
    again = index(IndexRequest(folder, out))  # all else is in the archive
    assert (again.added, again.kept, again.fresh, again.heard) == (0, 5, False, 0)
    assert tree(out) == before
    (folder / "0/rec0.wav").rename(folder / "moved.wav")
    write(folder / "0/rec1.wav", "high", 4, seed=50)
    (folder / "2/rec4.wav").unlink()
    write(folder / "more.wav", "low", 3, seed=51)
    third = index(IndexRequest(folder, out))
    assert (third.added, third.changed, third.moved, third.removed, third.kept) == (1, 1, 1, 1, 2)
    assert third.heard == 4 + 3
    assert Ear.heard - heard == 4 + 3
    assert len(list((out / "features" / third.archive.features[0].key).iterdir())) == 5
    assert not (out / "part").exists()
    assert len(list(out.glob("vectors-*"))) == len(list(out.glob("nearest-*"))) == 1


def test_a_stream_can_be_added_later(folder: Path, tmp_path: Path, pair: str) -> None:
    make(folder, tmp_path / "a", pair, features=())
    heard = Ear.heard
    make(folder, tmp_path / "a", pair)
    assert Ear.heard == heard  # the other encoder listened alone
    make(folder, tmp_path / "b", pair)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


class _Stop(Reporter):
    """Fails after `left` recordings."""

    def __init__(self, left: int) -> None:
        self.left = left

    def bar(self, title: str, total: int, *, unit: str = "it", done: int = 0):  # type: ignore[no-untyped-def]
        import contextlib

        outer = self

        class Counting(Bar):
            def advance(self, steps: int = 1, note: str = "") -> None:
                outer.left -= steps
                if outer.left < 0:
                    raise KeyboardInterrupt

        return contextlib.nullcontext(Counting())


def test_an_interrupted_indexing_goes_on(folder: Path, tmp_path: Path, pair: str) -> None:
    out = tmp_path / "a"
    request = IndexRequest(folder, out, pair, window=2.0, hop=1.0, features=(LOGMEL,), nearest_from=20)
    with pytest.raises(KeyboardInterrupt):
        index(request, _Stop(2))
    with pytest.raises(AmrctlError, match="was interrupted; run the same"):
        store.read(out)
    journal = out / "part" / build.JOURNAL
    assert len(journal.read_text().splitlines()) == 3
    journal.write_text(journal.read_text() + '{"path": "2/re')  # the line that a kill cut off
    with pytest.raises(OutputError, match="interrupted indexing with another encoder"):
        make(folder, out, pair, hop=0.5)
    heard = Ear.heard
    done = make(folder, out, pair)
    assert done.heard == 8 + 9
    assert Ear.heard - heard == 8 + 9
    make(folder, tmp_path / "b", pair)
    assert tree(out) == tree(tmp_path / "b")


def test_unreadable_files_are_listed_and_stop_nothing(folder: Path, tmp_path: Path, pair: str) -> None:
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.mp3").touch()
    (tmp_path / "outside.wav").write_bytes((folder / "0/rec0.wav").read_bytes())
    (folder / "link.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    samples = np.zeros(RATE, np.float32)
    samples[100] = np.nan
    soundfile.write(folder / "nan.wav", samples, RATE, subtype="FLOAT")
    done = make(folder, tmp_path / "a", pair)
    told = {fault.path: fault.why for fault in done.archive.unreadable}
    assert list(told) == ["empty.mp3", "gone.wav", "link.wav", "nan.wav", "text.wav"]
    assert "link out of the folder" in told["link.wav"]
    assert "not a finite number" in told["nan.wav"]
    assert not any(str(tmp_path) in why for why in told.values())
    assert len(done.archive.recordings) == 5
    write(folder / "text.wav", "low", 3)
    assert "text.wav" not in {f.path for f in make(folder, tmp_path / "a", pair).archive.unreadable}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"audio_encoder": "logmel"}, "logmel shares no space with sentences"),
        ({"audio_encoder": "ms-clap:x.pth"}, "x.pth"),
        ({"audio_encoder": "pari:x"}, "did you mean 'pair'"),
        ({"audio_encoder": None}, "--audio-encoder is missing"),
        ({"hop": 3.0}, "--hop 3 is more than --window 2"),
        ({"dtype": "float64"}, "--dtype float64: write float16 or float32"),
        ({"text_encoder": "words"}, "has the space (none)"),
        ({"folder": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_mistakes_leave_nothing(
    folder: Path, tmp_path: Path, pair: str, options: dict[str, object], says: str
) -> None:
    where = options.pop("folder", folder)
    assert isinstance(where, Path)
    with pytest.raises(AmrctlError) as told:
        make(where, tmp_path / "a", pair, **options)
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "a" / store.INDEX).exists()


def test_vectors_of_two_kinds_are_not_mixed(folder: Path, tmp_path: Path, pair: str) -> None:
    out = tmp_path / "a"
    make(folder, out, pair)
    before = tree(out)
    with pytest.raises(OutputError, match=r"hop 1.0, not 0.5.*vectors of two kinds cannot be mixed"):
        make(folder, out, pair, hop=0.5)
    other = tmp_path / "other.bin"
    other.write_bytes(b"other weights")
    with pytest.raises(OutputError, match="checkpoint_sha256"):
        make(folder, out, f"pair:{other}")
    with pytest.raises(OutputError, match="float16 vectors, not float32"):
        make(folder, out, pair, dtype="float32")
    assert tree(out) == before
    make(folder, out, f"pair:{other}", overwrite=True)
    make(folder, tmp_path / "b", f"pair:{other}")
    assert tree(out) == tree(tmp_path / "b")
    moved = tmp_path / "moved.bin"
    other.rename(moved)  # the same weights elsewhere
    assert make(folder, out, f"pair:{moved}").heard == 0


def test_other_things_are_not_overwritten(folder: Path, tmp_path: Path, pair: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        make(folder, tmp_path / "file", pair)
    with pytest.raises(OutputError, match="with other things in it"):
        make(folder, folder, pair)
    (tmp_path / "none").mkdir()
    with pytest.raises(AmrctlError, match=r"no sound file that can be read \(there is none\)"):
        make(tmp_path / "none", tmp_path / "c", pair)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"format": "x"}, "is not the index of an amrctl archive"),
        ({"version": 9}, "has archive format 9, this program reads 1"),
        ({"vectors": "../v.npy"}, "vectors: value error"),
        ({"recordings": [{"path": "/etc/passwd"}]}, "recordings.0.path: value error"),
        ({"recordings": [{"path": "a/../../b"}]}, "recordings.0.path: value error"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_a_damaged_index_is_told(
    folder: Path, tmp_path: Path, pair: str, edit: dict[str, object], says: str
) -> None:
    make(folder, tmp_path / "a", pair)
    path = tmp_path / "a" / store.INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(AmrctlError) as told:
        store.read(tmp_path / "a")
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_vectors_that_do_not_belong_to_the_index(folder: Path, tmp_path: Path, pair: str) -> None:
    archive = make(folder, tmp_path / "a", pair).archive
    path = tmp_path / "a" / archive.vectors
    np.save(path, np.load(path)[:-1])
    with pytest.raises(AmrctlError, match=r"holds float16 \(34, 12\), not float16 \(35, 12\)"):
        store.open_vectors(tmp_path / "a", archive)
    path.unlink()
    with pytest.raises(AmrctlError, match="missing or damaged"):
        store.open_vectors(tmp_path / "a", archive)
    make(folder, tmp_path / "a", pair, overwrite=True)
    assert len(store.open_vectors(tmp_path / "a", archive)) == 35


def test_memory_does_not_grow_with_a_recording(tmp_path: Path, pair: str) -> None:
    """Ten minutes at 48 kHz are 115 MB as float32; half a minute costs the same memory."""
    peaks = []
    for minutes in (0.5, 10):
        sounds = tmp_path / f"{minutes}"
        sounds.mkdir()
        with soundfile.SoundFile(sounds / "a.wav", "w", 48_000, 1, "PCM_16") as out:
            for _ in range(round(minutes * 2)):
                out.write(np.zeros(30 * 48_000))
        tracemalloc.start()
        make(sounds, tmp_path / f"{minutes}.index", pair, features=())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4e6


def test_several_processes_give_the_same(
    folder: Path, tmp_path: Path, pair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_begin", begin)
    (folder / "broken.wav").write_text("no sound")
    heard = Ear.heard
    make(folder, tmp_path / "a", pair, workers=2)
    assert Ear.heard == heard  # not in this process
    make(folder, tmp_path / "b", pair)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX systems")
def test_a_kill_anywhere_leaves_the_old_archive_or_the_new(folder: Path, tmp_path: Path, pair: str) -> None:
    """An update dies before any of its file operations; what is left is whole, and the next one mends it."""

    def update(out: Path, fatal: int | None) -> int:
        """The update in a process of its own: its file operations, or -9 when it was killed."""
        child = os.fork()
        if child == 0:
            code = 255
            try:
                counted = count(out, fatal)
                make(folder, out, pair)
                code = counted[0]
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    old = tmp_path / "old"
    make(folder, old, pair)
    before = tree(old)
    write(folder / "0/rec1.wav", "high", 4, seed=60)
    write(folder / "more.wav", "low", 3, seed=61)
    (folder / "2/rec4.wav").unlink()
    shutil.copytree(old, tmp_path / "whole")
    operations = update(tmp_path / "whole", None)
    assert 20 < operations < 200
    after = tree(tmp_path / "whole")
    assert after != before
    seen = set()
    for fatal in range(operations % 3, operations, 3):
        out = tmp_path / f"k{fatal}"
        shutil.copytree(old, out)
        assert update(out, fatal) == -9
        archive = store.read(out)
        store.open_vectors(out, archive)
        assert archive.nearest is None or (out / archive.nearest.file).is_file()
        for stream in archive.features:
            assert all(
                (out / "features" / stream.key / f"{r.sha256}.npy").is_file() for r in archive.recordings
            )
        named = (out / store.INDEX).read_bytes()
        assert named in (before[store.INDEX], after[store.INDEX])
        seen.add(named)
        make(folder, out, pair)
        assert tree(out) == after
        shutil.rmtree(out)
    assert len(seen) == 2
