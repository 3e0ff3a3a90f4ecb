"""Official npz folders: in and out to the bit, one clear line for a bad file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest, Query
from amrctl.data.npz import export_npz, import_npz
from amrctl.data.tef import tef_2d
from amrctl.errors import FeatureError, OutputError
from amrctl.progress import Reporter

VIDS = ["-0awng26xQ8", "Singapore_0.0_60.0", "ドア"]
DTYPES = ("float16", "float32", "float64")


def manifest(vids: list[str] | None = None) -> Manifest:
    return Manifest(None, tuple(Query(f"{v}_{n}", "q", v, 5.0, None) for v in (vids or VIDS) for n in (1, 2)))


def folders(root: Path, dtype: str, vids: list[str] | None = None) -> tuple[Path, Path]:
    """Nested folders in the official layout, values of every scale."""
    audio, text = root / "features" / "castella" / "clap", root / "x" / "clap_text"
    audio.mkdir(parents=True)
    text.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, vid in enumerate(vids or VIDS):
        np.savez(audio / f"{vid}.npz", features=(rng.standard_normal((i + 4, 6)) * 1e-3).astype(dtype))
        for n in (1, 2):
            save = np.savez if n == 1 else np.savez_compressed
            save(text / f"qid{vid}_{n}.npz", last_hidden_state=rng.standard_normal((n, 5)).astype(dtype))
    return audio, text


def contents(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            found.update({f"{path.name}:{key}": file[key] for key in file.files})
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_npz_in_and_out_is_equal_to_the_bit(tmp_path: Path, dtype: str) -> None:
    audio, text = folders(tmp_path / "in", dtype)
    out = tmp_path / "F.h5"
    import_npz(out, tmp_path / "in" / "features", tmp_path / "in", "ms-clap", manifest(), tef={"2d": tef_2d})
    with FeatureFile(out) as file:
        info = file.resolve("audio", "auto")
        assert (info.name, info.dtype, info.hop, info.attrs["source_dtype"]) == ("ms-clap", dtype, 1.0, dtype)
        assert file.ids("text", "ms-clap")[:2] == ["-0awng26xQ8_1", "-0awng26xQ8_2"]
        assert file.load("tef", "2d", [VIDS[0]]).rows.tolist() == tef_2d(4).tolist()
    places = export_npz(out, tmp_path / "out")
    assert places == (tmp_path / "out" / "ms-clap", tmp_path / "out" / "ms-clap_text")
    for before, after in zip((audio, text), places, strict=True):
        assert after is not None
        old, new = contents(before), contents(after)
        assert list(old) == list(new)
        for key in old:
            assert old[key].dtype == new[key].dtype
            assert old[key].tobytes() == new[key].tobytes()
    with pytest.raises(OutputError, match="--overwrite"):
        export_npz(out, tmp_path / "out")
    with pytest.raises(OutputError, match="'ms-clap' already"):
        import_npz(out, audio, None, "ms-clap", manifest())
    import_npz(out, audio, None, "second", manifest())
    assert export_npz(out, tmp_path / "out", "second", None, overwrite=True) == (
        tmp_path / "out" / "second",
        None,
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["second"]


def test_sentence_vectors_survive(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "F.h5", {}, False)
    for qid in ("a_1", "a_2"):
        writer.put("text", "t", qid, np.ones((2, 3)), np.arange(4.0) + len(qid))
    writer.finish([StreamSpec("text", "t", ["a_1", "a_2"])])
    _, text = export_npz(tmp_path / "F.h5", tmp_path / "out", None, "t")
    import_npz(tmp_path / "G.h5", None, text, "t", manifest(["a"]))
    with FeatureFile(tmp_path / "G.h5") as file:
        vectors = file.pooled("t", ["a_2"])
        assert vectors is not None
        assert vectors.tolist() == [[3, 4, 5, 6]]


def _save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("a.npz", {"feature": np.ones((2, 3))}, "a.npz: has no array 'features'; it holds feature"),
        ("a.npz", {"features": np.ones(3)}, r"a.npz: 'features' is float64 of shape \(3,\)"),
        ("a.npz", {"features": np.ones((0, 6))}, "a.npz: .*shape"),
        ("a.npz", {"features": np.ones((2, 6), np.int32)}, "a.npz: 'features' is int32"),
        ("a.npz", {"features": np.array([["x"]], object)}, "a.npz: "),
        (
            "a.npz",
            {"features": np.full((2, 6), np.nan, np.float32)},
            "a.npz: holds a value that is not finite",
        ),
        ("b.npz", {"features": np.ones((2, 7), np.float32)}, "b.npz: width 7, .*a.npz has width 6"),
        ("b.npz", {"features": np.ones((2, 6), np.float16)}, "b.npz: width 6, float16.*width 6, float32"),
        (
            "qidb_2.npz",
            {"last_hidden_state": np.full((2, 5), np.inf, np.float32)},
            "qidb_2.npz: holds a value",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, arrays: dict[str, Any], words: str) -> None:
    audio, text = folders(tmp_path / "in", "float32", ["a", "b"])
    _save((text if name.startswith("qid") else audio) / name, **arrays)
    with pytest.raises(FeatureError, match=words):
        import_npz(tmp_path / "F.h5", audio, text, "n", manifest(["a", "b"]))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_broken_missing_and_double_files(tmp_path: Path) -> None:
    audio, text = folders(tmp_path / "in", "float32", ["a", "b"])
    (audio / "b.npz").rename(audio.parent / "b.npz")
    import_npz(tmp_path / "F.h5", audio.parent, None, "n", manifest(["a", "b"]))  # found where it lies
    with pytest.raises(FeatureError, match=r"clap has no b.npz \(1 of 2 files missing\)"):
        import_npz(tmp_path / "G.h5", audio, None, "n", manifest(["a", "b"]))
    (audio / "b.npz").write_bytes((audio / "a.npz").read_bytes())
    with pytest.raises(FeatureError, match="are both for 'b'; keep one"):
        import_npz(tmp_path / "G.h5", audio.parent, None, "n", manifest(["a", "b"]))
    data = (audio / "a.npz").read_bytes()
    for broken in (
        b"",
        b"PK",
        data[: len(data) // 2],
        data[:60] + b"\xff\xff\xff" + data[63:],
        data[:150] + bytes(8) + data[158:],
    ):
        (audio / "a.npz").write_bytes(broken)
        with pytest.raises(FeatureError, match=r"a\.npz: "):
            import_npz(tmp_path / "G.h5", audio, None, "n", manifest(["a"]))
    with pytest.raises(FeatureError, match="nothing to import"):
        import_npz(tmp_path / "G.h5", None, None, "n", manifest(["a"]))
    with pytest.raises(FeatureError, match="absent is not a folder"):
        import_npz(tmp_path / "G.h5", tmp_path / "absent", None, "n", manifest(["a"]))
    assert not (tmp_path / "G.h5").exists()
    with zipfile.ZipFile(text / "qida_1.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(FeatureError, match=r"it holds readme\.txt"):
        import_npz(tmp_path / "G.h5", None, text, "n", manifest(["a"]))


@pytest.mark.parametrize("vid", ["../up", "a/b", "a\\b", ".."])
def test_ids_never_leave_their_folder(tmp_path: Path, vid: str) -> None:
    audio, _ = folders(tmp_path / "in", "float32", ["a"])
    (tmp_path / "in" / "up.npz").write_bytes((audio / "a.npz").read_bytes())
    with pytest.raises(FeatureError, match="cannot name a file"):
        import_npz(tmp_path / "F.h5", audio, None, "n", manifest([vid]))
    writer = FeatureWriter(tmp_path / "F.h5", {}, False)
    writer.put("audio", "n", vid, np.ones((1, 1)))
    writer.finish([StreamSpec("audio", "n", [vid])])
    with pytest.raises(FeatureError, match="cannot name a file"):
        export_npz(tmp_path / "F.h5", tmp_path / "out", "n", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["F.h5", "in"]


def test_lengths_that_contradict_the_manifest_are_told(tmp_path: Path) -> None:
    class Notes(Reporter):
        def __init__(self) -> None:
            self.told: list[str] = []

        def note(self, text: str) -> None:
            self.told.append(text)

    audio, _ = folders(tmp_path, "float32")  # 4, 5 and 6 frames, 5 s each
    notes = Notes()
    import_npz(tmp_path / "F.h5", audio, None, "n", manifest(), report=notes)
    assert notes.told == []
    import_npz(tmp_path / "G.h5", audio, None, "n", manifest(), hop=2.0, report=notes)
    assert notes.told[0].startswith("3 of 3 recordings have features more than 2 s longer or shorter")
    assert "first: -0awng26xQ8, 8 s, in the manifest 5 s" in notes.told[0]
