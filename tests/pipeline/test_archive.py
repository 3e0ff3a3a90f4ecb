"""An archive answers as its recordings answer one by one, from stored features or from the sound."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amrctl.archive.build import index
from amrctl.archive.rank import factor
from amrctl.archive.request import IndexRequest
from amrctl.errors import AmrctlError, ArchiveError
from amrctl.pipeline.archive import ArchiveFound, ArchiveRequest, ArchiveSearch, streams_of
from amrctl.pipeline.search import SearchRequest, search
from amrctl.progress import Reporter
from tests.archive.pair import TONES, detector, pair, write

assert pair  # a fixture
SENTENCES = ("a high tone", "a low tone", "something in the middle")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("detector") / "d.safetensors")


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three recordings of each tone, one of them too long for one chunk of the detector."""
    for i in range(9):
        word = list(TONES)[i % 3]
        write(tmp_path / "sounds" / f"{word}-{i}.wav", word, 31 if i == 2 else 6 + i, seed=i)
    return tmp_path / "sounds"


@pytest.fixture
def archive(sounds: Path, tmp_path: Path, pair: str, checkpoint: Path) -> Path:
    made = IndexRequest(sounds, tmp_path / "a", pair, window=4.0, features=streams_of(checkpoint))
    index(made)
    return tmp_path / "a"


@pytest.fixture
def bare(sounds: Path, tmp_path: Path, pair: str) -> Path:
    """Without the detector's features."""
    index(IndexRequest(sounds, tmp_path / "bare", pair, window=4.0))
    return tmp_path / "bare"


def ask(archive: Path, checkpoint: Path, *sentences: str, **change: object) -> ArchiveFound:
    options: dict[str, object] = {"device": "cpu", "recordings": 4, "rounding": 0.0, **change}
    return ArchiveSearch(ArchiveRequest(archive, checkpoint, **options)).ask(sentences or SENTENCES)  # type: ignore[arg-type]


def words(found: ArchiveFound) -> list[list[str]]:
    return [[hit.file.partition("-")[0] for hit in answer.recordings] for answer in found.answers]


def test_the_recordings_that_are_asked_for_come_first(archive: Path, checkpoint: Path) -> None:
    found = ask(archive, checkpoint)
    for answered, word in zip(words(found), ("high", "low", "middle"), strict=True):
        assert answered[:3] == [word] * 3
        assert len(answered) == 4
    assert (found.recordings, found.how) == (9, "exact")
    assert found.windows == sum(max(1, int(np.floor(s / 2 + 0.5))) for s in (6, 7, 31, 9, 10, 11, 12, 13, 14))


def test_moments_are_those_of_each_recording(archive: Path, sounds: Path, checkpoint: Path) -> None:
    found = ask(archive, checkpoint, top=500, drop_copies=1.0)
    for answer in found.answers:
        best = answer.recordings[0].score
        assert [m.score for m in answer.moments] == sorted((m.score for m in answer.moments), reverse=True)
        for hit in answer.recordings:
            alone = SearchRequest(sounds / hit.file, (answer.query,), checkpoint, top=500, drop_copies=1.0,
                                  rounding=0.0, device="cpu")  # fmt: skip
            wanted = search(alone).items[0].windows
            ours = [m for m in answer.moments if m.file == hit.file]
            rows = np.array([(m.start, m.end, m.moment_score) for m in ours])
            np.testing.assert_allclose(rows, wanted, atol=1e-4)
            by = factor(hit.score, best, 10.0)
            for moment in ours:
                assert moment.recording_score == hit.score
                assert moment.score == moment.moment_score * by
    plain = ask(archive, checkpoint, top=500, drop_copies=1.0, weight=0.0)
    for answer in plain.answers:
        scores = [m.moment_score for m in answer.moments]
        assert scores == sorted(scores, reverse=True)


def test_stored_cached_and_heard_features_give_the_same(
    archive: Path, bare: Path, sounds: Path, checkpoint: Path
) -> None:
    stored = ask(archive, checkpoint)
    fresh = ask(bare, checkpoint)
    files = sorted((bare / "cache").rglob("*.npy"))
    assert len(files) == len({hit.file for answer in fresh.answers for hit in answer.recordings})
    named = ask(bare, checkpoint, audio_encoders=("logmel",), cache_bytes=0)
    shutil.rmtree(sounds)  # from here on nothing can be heard
    cached = ask(bare, checkpoint)
    silent = ask(archive, checkpoint)
    assert not (archive / "cache").exists()
    for found in (fresh, cached, silent, named):
        assert found.answers == stored.answers
    for path in files:
        path.unlink()
    with pytest.raises(ArchiveError, match=r"not one of the .* can be heard.*--audio"):
        ask(bare, checkpoint)


def test_damaged_features_are_heard_again(archive: Path, checkpoint: Path) -> None:
    wanted = ask(archive, checkpoint).answers
    for path in (archive / "features").rglob("*.npy"):
        path.write_bytes(b"broken")
    assert ask(archive, checkpoint).answers == wanted
    assert list((archive / "cache").rglob("*.npy"))


def test_graph_and_all_windows_agree(sounds: Path, tmp_path: Path, pair: str, checkpoint: Path) -> None:
    pytest.importorskip("faiss")
    out = tmp_path / "graph"
    index(IndexRequest(sounds, out, pair, window=4.0, hop=0.1, nearest_from=1))
    quick = ask(out, checkpoint, recordings=1)
    exact = ask(out, checkpoint, recordings=1, exact=True)
    assert (quick.how, exact.how) == ("nearest", "exact")
    assert quick.answers == exact.answers


def test_archive_and_recordings_may_move(bare: Path, sounds: Path, checkpoint: Path, tmp_path: Path) -> None:
    wanted = ask(bare, checkpoint, cache_bytes=0).answers
    (tmp_path / "elsewhere").mkdir()
    sounds.rename(tmp_path / "elsewhere/sounds")
    bare.rename(tmp_path / "elsewhere/bare")
    together = tmp_path / "elsewhere/bare"
    shutil.rmtree(together / "cache", ignore_errors=True)
    assert ask(together, checkpoint, cache_bytes=0).answers == wanted
    shutil.copytree(tmp_path / "elsewhere/sounds", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "elsewhere/sounds")
    assert ask(together, checkpoint, cache_bytes=0, folder=tmp_path / "copy").answers == wanted


class _Notes(Reporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def notes() -> _Notes:
    return _Notes()


def test_changed_and_missing_recordings_are_passed_over(
    bare: Path, sounds: Path, checkpoint: Path, notes: _Notes
) -> None:
    asked = ArchiveRequest(bare, checkpoint, device="cpu", recordings=4, rounding=0.0)
    before = ArchiveSearch(replace(asked, cache_bytes=0)).ask(("a high tone",))
    write(sounds / "high-2.wav", "high", 31, seed=77)  # as long, and other samples
    (sounds / "high-5.wav").unlink()
    found = ArchiveSearch(asked, notes).ask(("a high tone",))
    assert set(found.skipped) == {"high-2.wav", "high-5.wav"}
    assert "changed since it was indexed" in found.skipped["high-2.wav"]
    assert any("high-5.wav is not in" in note for note in notes.told)
    assert [hit.file for hit in found.answers[0].recordings] == [h.file for h in before.answers[0].recordings]
    assert {m.file for m in found.answers[0].moments} <= {
        h.file for h in before.answers[0].recordings if h.file not in found.skipped
    }


def test_top_and_min_score(archive: Path, checkpoint: Path) -> None:
    everything = ask(archive, checkpoint, "a high tone", top=500).answers[0]
    assert ask(archive, checkpoint, "a high tone", top=3).answers[0].moments == everything.moments[:3]
    bar = everything.moments[4].score
    few = ask(archive, checkpoint, "a high tone", top=500, min_score=bar).answers[0]
    assert few.moments == tuple(m for m in everything.moments if m.score >= bar)
    none = ask(archive, checkpoint, "a high tone", min_score=1.0)
    assert none.answers[0].moments == ()
    assert none.answers[0].best == everything.moments[0].score
    query = none.to_json()["queries"][0]
    assert query["moments"] == []
    assert query["recordings"][0].keys() == {"file", "score", "start", "end", "duration"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"archive": Path("none")}, "archive none does not exist; amrctl index FOLDER --out none makes it"),
        ({"checkpoint": Path("no.safetensors")}, "no.safetensors does not exist"),
        ({"recordings": 0}, "--recordings 0: at least 1"),
        ({"best_of": 0}, "--best-of 0: at least 1"),
        ({"weight": float("nan")}, "--recording-weight nan"),
        ({"text_of_archive": "words"}, "has the space (none), the archive's vectors have pair:"),
        ({"audio_encoders": ("logmel", "logmel")}, "reads 1 audio streams, --audio-encoder names 2"),
    ],
)
def test_mistakes_are_one_line(bare: Path, checkpoint: Path, change: dict[str, object], says: str) -> None:
    request = replace(ArchiveRequest(bare, checkpoint, device="cpu"), **change)  # type: ignore[arg-type]
    with pytest.raises(AmrctlError) as told:
        ArchiveSearch(request).ask(("rain",))
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(AmrctlError, match="sentence 2 of 2 is empty"):
        ask(bare, checkpoint, "rain", " ")
