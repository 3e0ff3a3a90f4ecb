"""Files appear whole or not at all; hashes and origins are what they say."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amrctl import provenance
from amrctl.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the example of FIPS 180-2
    assert provenance.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    data = bytes(range(256)) * 12_345  # several pieces
    path.write_bytes(data)
    assert provenance.sha256(path) == hashlib.sha256(data).hexdigest()


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "out.txt"
    with provenance.writing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "half"
    assert names(target.parent) == ["out.txt"]


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    """The name moves to a new file; the old one is not written into."""
    target, link = tmp_path / "out.txt", tmp_path / "link.txt"
    provenance.write_text(target, "old")
    os.link(target, link)
    provenance.write_text(target, "new")
    assert (target.read_text(), link.read_text()) == ("new", "old")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    provenance.write_text(target, "old")

    def fail() -> None:
        with provenance.writing(target) as temporary:
            temporary.write_text("half of the new")
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    provenance.write_text(target, "old")
    code = (
        "import sys, time\nfrom amrctl import provenance\n"
        "with provenance.writing(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('now', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    provenance.write_text(target, "new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.skipif(os.name != "posix", reason="whether a process lives is asked the POSIX way")
def test_what_dead_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        dead = process.pid
    alive, here = os.getppid(), os.getpid()
    kept = [
        f".out.txt.{alive}.tmp",  # a writer at work
        f".other.txt.{dead}.tmp",  # of another target
        f".out.txt.old.{dead}.tmp",  # of a target called out.txt.old
        f".out.txt.{dead}.tmp.txt",
        f"out.txt.{dead}.tmp",
    ]
    for name in (*kept, f".out.txt.{dead}.tmp", f".out.txt.{here}.tmp"):
        (tmp_path / name).write_text("half")
    provenance.write_text(tmp_path / "out.txt", "new")
    assert names(tmp_path) == sorted([*kept, "out.txt"])

    for name in (f".made.{dead}.tmp", f".made.{dead}.old.tmp"):
        (tmp_path / name / "deep").mkdir(parents=True)
    with provenance.writing_folder(tmp_path / "made"):
        pass
    assert names(tmp_path) == sorted([*kept, "made", "out.txt"])


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_new_files_have_the_permissions_of_new_files(tmp_path: Path, mask: int) -> None:
    import torch
    from safetensors.torch import save_file

    before = os.umask(mask)
    try:
        target = tmp_path / "weights.safetensors"
        for _ in range(2):  # new, and over an old one
            with provenance.writing(target) as temporary:
                save_file({"x": torch.zeros(1)}, temporary)
                temporary.chmod(0o600)  # as some writers leave it, on any version
            assert target.stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_an_existing_file_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    provenance.write_text(target, "old")
    with pytest.raises(OutputError, match=r"out\.txt exists; choose another --out or add --overwrite"):
        provenance.write_text(target, "new", overwrite=False)
    assert target.read_text() == "old"
    assert provenance.refuse_existing(target, True) == target


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        provenance.write_text(tmp_path / "file" / "out.txt", "x")
    with pytest.raises(OutputError, match="folder is a folder; --out needs a file"):
        provenance.write_text(tmp_path / "folder", "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(OutputError, match="read-only"):
        provenance.write_text(tmp_path / "out.txt", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def fail() -> None:
        with provenance.writing_folder(target, overwrite=True) as temporary:
            (temporary / "half").write_text("")
            raise KeyError("in the middle")

    with provenance.writing_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    with pytest.raises(OutputError, match="exists"), provenance.writing_folder(target):
        pass
    with pytest.raises(KeyError):
        fail()
    assert names(target) == ["a"]
    with provenance.writing_folder(target, overwrite=True) as temporary:
        (temporary / "b").write_text("2")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["made"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("")
    replace = Path.replace

    def refuse(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith(".old.tmp"):
            raise PermissionError(13, "no")
        return replace(self, to)

    def write() -> None:
        with provenance.writing_folder(target, overwrite=True) as temporary:
            (temporary / "new").write_text("")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["made"]


def test_overwriting_never_deletes_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "project" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    for target in (Path(), work, tmp_path / "project"):
        with (
            pytest.raises(OutputError, match="would be deleted"),
            provenance.writing_folder(target, overwrite=True),
        ):
            pass
    assert work.is_dir()


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    provenance.write_json(path, {"caption": "Vögel", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"caption": "Vögel", "n": 1}
    assert "Vögel" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON compliant"):
        provenance.write_json(path, {"n": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1


@pytest.mark.parametrize(("value", "text"), [(3.0, "3"), (3.5, "3.5"), (0.1, "0.1"), (-0.0, "0"), (7, "7")])
def test_numbers_in_their_shortest_spelling(value: float, text: str) -> None:
    assert json.dumps(provenance.number(value)) == text


def test_origin_tells_command_time_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(sys, "argv", ["/usr/bin/amrctl", "search", "a dog's bark", "--json"])
    origin = provenance.origin()
    assert origin["command"] == """amrctl search 'a dog'"'"'s bark' --json"""
    assert (
        abs(time.mktime(time.strptime(origin["created"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time())
        < 90
    )
    assert origin["versions"]["numpy"] == np.__version__
    assert {"amrctl", "python"} <= set(origin["versions"])
