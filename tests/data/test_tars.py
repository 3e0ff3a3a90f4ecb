"""Recordings in tars: heard as the same files in a folder, and every way a tar can be wrong."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amrctl.data.audio import Member, load_mono, probe
from amrctl.data.tars import find_recordings
from amrctl.errors import AudioError


def sound(seed: int, seconds: float = 1.0, rate: int = 8000, suffix: str = "WAV") -> bytes:
    held = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate))
    soundfile.write(held, samples, rate, format=suffix)
    return held.getvalue()


def entry(path: str) -> bytes:
    return json.dumps({"bg": {"path": path, "start": 0}, "fg": []}).encode()


def write(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


MEMBERS = {
    "000000.wav": sound(0),
    "000000.json": entry(".tmp/train/bg/Amsterdam/0.0_60.0.wav"),
    "deep/1.5.json": entry("/data/bg/Walk 2/61.5_121.5.WAV"),
    "deep/1.5.wav": sound(1),
    "readme.txt": b"words",
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ids_come_from_the_json_and_samples_from_the_tar(tmp_path: Path, form: int) -> None:
    tar = write(tmp_path / "tars" / "train" / "0.tar", MEMBERS, form)
    long = "x" * 130 + ".flac"
    write(
        tmp_path / "tars" / "1.tar",
        {long: sound(2, 2.0, suffix="FLAC"), long[:-4] + "json": entry("b/c")},
        form if form != tarfile.USTAR_FORMAT else tarfile.GNU_FORMAT,
    )
    (tmp_path / "tars" / "plain.wav").write_bytes(sound(3))
    vids = ["plain", "b_c", "Amsterdam_0.0_60.0", "Walk 2_61.5_121.5"]
    found = find_recordings(tmp_path / "tars", vids)
    assert list(found) == vids
    for vid, seed in (("Amsterdam_0.0_60.0", 0), ("Walk 2_61.5_121.5", 1), ("b_c", 2), ("plain", 3)):
        alone = tmp_path / f"{seed}{'.flac' if seed == 2 else '.wav'}"
        alone.write_bytes(sound(seed, 2.0 if seed == 2 else 1.0, suffix="FLAC" if seed == 2 else "WAV"))
        assert probe(found[vid]) == probe(alone)
        for rate in (8000, 16000):
            np.testing.assert_array_equal(load_mono(found[vid], rate), load_mono(alone, rate))
    assert list(find_recordings(tar, vids[2:])) == vids[2:]
    assert isinstance(found["b_c"], Member)
    assert isinstance(found["plain"], Path)


def test_no_name_in_a_tar_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(sound(9))
    tar = write(
        tmp_path / "t" / "a.tar",
        {"../../secret.wav": sound(1), "../../secret.json": entry("../../x/../secret.wav")},
    )
    with tarfile.open(tar, "a") as more:
        link = tarfile.TarInfo("k.wav")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.wav")
        more.addfile(link)
        content = entry("a/k.wav")
        info = tarfile.TarInfo("k.json")
        info.size = len(content)
        more.addfile(info, io.BytesIO(content))
    found = find_recordings(tar.parent, [".._secret"])
    np.testing.assert_array_equal(
        load_mono(found[".._secret"], 8000), soundfile.read(io.BytesIO(sound(1)), dtype="float32")[0]
    )
    with pytest.raises(AudioError, match="no audio for recording a_k under"):
        find_recordings(tar.parent, ["a_k"])
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "b.tar").symlink_to(tar)
    with pytest.raises(AudioError, match=r"b\.tar is a link out of"):
        find_recordings(tmp_path / "u", [".._secret"])


def one(**changed: bytes | None) -> dict[str, bytes]:
    """The members above with some replaced, or left out (None); `_` stands for the dot."""
    members: dict[str, bytes | None] = dict(MEMBERS)
    members.update({name.replace("_", ".").removeprefix("k"): content for name, content in changed.items()})
    return {name: content for name, content in members.items() if content is not None}


WANTED = "Amsterdam_0.0_60.0"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (one(k000000_json=None), r"a\.tar:000000\.wav has no 000000\.json beside it"),
        (one(k000000_json=b"{"), r"a\.tar:000000\.wav 000000\.json is not JSON"),
        (one(k000000_json=b"[1]"), r"000000\.json has no bg\.path of the form"),
        (one(k000000_json=b'{"bg": {"path": "0.0_60.0.wav"}}'), r"has no bg\.path of the form"),
        (one(k000000_flac=sound(5)), r"a\.tar:000000\.flac has two sounds"),
        (
            one(z_wav=sound(5), z_json=entry("x/Amsterdam/0.0_60.0.wav")),
            r"recording Amsterdam_0\.0_60\.0 is there twice: .*a\.tar:000000\.wav and .*a\.tar:z\.wav",
        ),
    ],
)
def test_faults_of_the_layout(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    tar = write(tmp_path / "a.tar", members)
    with pytest.raises(AudioError, match=said) as caught:
        find_recordings(tar, [WANTED])
    assert "\n" not in str(caught.value)
    bad: dict[str, str] = {}
    found = find_recordings(tar, [WANTED, "Walk 2_61.5_121.5"], bad=bad)
    assert list(found) == ["Walk 2_61.5_121.5"]
    assert list(bad) == [WANTED]


def test_a_recording_in_two_places(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.tar", MEMBERS)
    write(tmp_path / "t" / "b.tar", MEMBERS)
    with pytest.raises(AudioError, match=r"is there twice: .*a\.tar:000000\.wav and .*b\.tar:000000\.wav"):
        find_recordings(tmp_path / "t", [WANTED])
    (tmp_path / "t" / "b.tar").unlink()
    (tmp_path / "t" / f"{WANTED}.wav").write_bytes(sound(3))
    with pytest.raises(AudioError, match=r"twice: .*a\.tar:000000\.wav and .*t/Amsterdam_0\.0_60\.0\.wav"):
        find_recordings(tmp_path / "t", [WANTED])
    with pytest.raises(AudioError, match=r"no audio for recording gone under .* \(in a\.tar, nor beside\)"):
        find_recordings(tmp_path / "t", ["gone"])


def test_cut_off_damaged_and_other_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tar", MEMBERS).read_bytes()
    path = tmp_path / "a.tar"
    # in a sound, in a header, and in the last member
    for length in (3000, 17408 + 200, len(b"".join(MEMBERS.values())) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(AudioError, match=r"a\.tar: the tar is cut off; copy it again"):
            find_recordings(path, [WANTED])
    header = whole.index(b"deep/1.5.json")
    path.write_bytes(whole[:header] + b"\7" * 512 + whole[header + 512 :])
    with pytest.raises(AudioError, match=rf"a\.tar: the tar is damaged at byte {header:,}; copy it again"):
        find_recordings(path, [WANTED])
    for content in (b"", b"\x1f\x8b\x08" + bytes(600), b"RIFF" * 400):
        path.write_bytes(content)
        with pytest.raises(AudioError, match=r"a\.tar: not a tar, or a compressed one"):
            find_recordings(path, [WANTED])
    with pytest.raises(AudioError, match="nowhere is not a folder"):
        find_recordings(tmp_path / "nowhere", [WANTED])


def test_faults_of_a_sound_name_tar_and_member(tmp_path: Path) -> None:
    samples = np.zeros(20000)
    samples[9000] = np.nan
    held = io.BytesIO()
    soundfile.write(held, samples, 8000, format="WAV", subtype="FLOAT")
    tar = write(tmp_path / "a.tar", one(k000000_wav=held.getvalue()))
    found = find_recordings(tar, [WANTED])
    with pytest.raises(AudioError, match=r"a\.tar:000000\.wav: sample 9000 \(1\.125 s\) is not a finite"):
        load_mono(found[WANTED], 16000)
    tar = write(tmp_path / "a.tar", one(k000000_wav=b"no sound at all" * 9))
    with pytest.raises(AudioError, match=r"a\.tar:000000\.wav: not a readable sound file"):
        load_mono(find_recordings(tar, [WANTED])[WANTED], 16000)


def test_an_index_of_many_large_members_is_small(tmp_path: Path) -> None:
    quiet = sound(0, 60.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(40):
            for name, content in ((f"{i}.wav", quiet), (f"{i}.json", entry(f"bg/W/{i}.0_9.wav"))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    tracemalloc.start()
    found = find_recordings(tmp_path / "a.tar", [f"W_{i}.0_9" for i in range(40)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 40
    assert peak < len(quiet) / 4  # 40 times as much is in the tar
