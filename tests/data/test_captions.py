"""Lists of captioned clips: four formats, events, exclusion, and every fault with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amrctl.data.captions import CaptionedClip, exclude, read_captions, read_ids, with_events
from amrctl.errors import ManifestError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_own_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "captions.csv",
        '\ufefffile,caption\nx/a.wav,a dog barks\n"b,1.wav","rain, and wind"\n'
        "x/a.wav,barking\n\nc.wav,A  dog  Barks \n",
    )
    clips = read_captions(path)
    assert [(c.names, c.captions, c.event, c.where) for c in clips] == [
        (("x/a.wav",), ("a dog barks", "barking"), "a dog barks", f"{path}:2"),
        (("b,1.wav",), ("rain, and wind",), "rain, and wind", f"{path}:3"),
        (("c.wav",), ("A  dog  Barks",), "a dog barks", f"{path}:6"),
    ]


def test_event_and_split_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "c.csv",
        "split,event,file,caption\ntrain,dog,a.wav,woof\ntest,dog,b.wav,woof\ntest,cat,c.wav,meow\n",
    )
    assert [(c.event, c.split) for c in read_captions(path)] == [
        ("dog", "train"),
        ("dog", "test"),
        ("cat", "test"),
    ]


def test_clotho(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "clotho.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        '"VCR,rewind,opendoor.wav",A tape rewinds.,"A VCR, then a door.",c,d,e\n',
    )
    (clip,) = read_captions(path)
    assert clip.names == ("VCR,rewind,opendoor.wav",)
    assert clip.captions == ("A tape rewinds.", "A VCR, then a door.", "c", "d", "e")


def test_audiocaps_rows_of_one_clip_join(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "val.csv",
        "audiocap_id,youtube_id,start_time,caption\n1,-rF-kxWuFFA,30,Rain falls\n"
        "2,-rF-kxWuFFA,30,It rains\n3,abc,0,A man\n",
    )
    clips = read_captions(path)
    assert [c.captions for c in clips] == [("Rain falls", "It rains"), ("A man",)]
    assert clips[0].names == ("-rF-kxWuFFA_30", "Y-rF-kxWuFFA_30", "-rF-kxWuFFA", "Y-rF-kxWuFFA", "1")


def test_wavcaps_and_several_files(tmp_path: Path) -> None:
    audioset = {"id": "Yb0RFKhbpFJA.wav", "caption": "A frog croaks.", "duration": 10.0}
    one = write(tmp_path, "as.json", json.dumps({"num_captions_per_audio": 1, "data": [audioset]}))
    two = write(
        tmp_path,
        "sb.json",
        json.dumps({"data": [{"id": "2219", "caption": "a frog croaks."}, {"id": 7, "caption": "x"}]}),
    )
    clips = read_captions([one, two])
    assert [c.names for c in clips] == [("Yb0RFKhbpFJA",), ("2219",), ("7",)]
    assert clips[0].event == clips[1].event != clips[2].event
    assert exclude(clips, {"b0RFKhbpFJA"}) == clips[1:]
    assert exclude(clips, {"Yb0RFKhbpFJA.wav", "7"}) == [clips[1]]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("123\n-x\n\n", {"123", "-x"}),
        ("sound_id\n99\n100\n", {"99", "100"}),
        ("name,sound_id\nfoo,99\nbar,\n", {"99"}),
    ],
)
def test_ids(tmp_path: Path, text: str, ids: set[str]) -> None:
    assert read_ids(write(tmp_path, "ids.csv", text)) == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,text\na.wav,x\n", "c.csv:1: needs the columns file,caption"),
        ("file,caption\n", "no captions in it"),
        ("file,caption\na.wav,x\nb.wav,rain, wind\n", "c.csv:3: 3 fields where the header has 2; put quotes"),
        ("file,caption\na.wav,x\n,y\n", "c.csv:3: no file"),
        ("file,caption\na.wav,\n", "c.csv:2: no caption"),
        ('file,caption\na.wav,"x\n', "c.csv:2: broken CSV"),
        ("file,caption\n../a.wav,x\n", r"c.csv:2: the file name '\.\./a.wav' is not a path inside"),
        ("file,caption\n/etc/a.wav,x\n", "c.csv:2: the file name '/etc/a.wav' is not a path inside"),
        ("file,caption\nC:\\a.wav,x\n", "is not a path inside"),
        ("file,caption\nx\\..\\..\\a.wav,x\n", "is not a path inside"),
        (
            "file,caption,event\na.wav,x,dog\na.wav,y,cat\n",
            "c.csv:3: a.wav has the event 'cat' here and 'dog' at .*:2",
        ),
        (
            "file,caption,event\na.wav,x,dog\nb.wav,y,\n",
            "c.csv:3: 'event' is empty here and filled on other rows",
        ),
        ("file,caption,split\na.wav,x,train\nb.wav,y,\n", "c.csv:3: 'split' is empty here"),
        ("file,caption,split\na.wav,x,train\na.wav,y,test\n", "c.csv:3: a.wav has the split 'test'"),
        (
            "file,caption,event\na.wav,Barking,dog\nb.wav,barking,seal\n",
            r"c.csv:3: the caption 'barking' of event 'seal' also belongs to event 'dog' \(.*c.csv:2\)",
        ),
        ("file,file,caption\na.wav,b.wav,x\n", "c.csv:1: the header has a column twice"),
    ],
)
def test_faults_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read_captions(write(tmp_path, "c.csv", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no list 'data'"),
        ("{", "broken JSON"),
        ('{"data": [{"id": "a", "caption": "x"}, {"id": "b"}]}', "entry 2: needs 'id' and 'caption'"),
        ('{"data": [{"id": "../b", "caption": "x"}]}', "entry 1: the file name"),
    ],
)
def test_faults_of_json(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_captions(write(tmp_path, "w.json", text))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: cannot read"):
        read_captions(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"b\.csv: not a CSV in UTF-8"):
        read_captions(tmp_path / "b.csv")
    with pytest.raises(ManifestError, match="did you mean 'clotho'"):
        read_captions(tmp_path / "b.csv", "cloto")


@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=15))
def test_events_are_what_shared_sentences_connect(sentences: list[set[int]]) -> None:
    clips = [
        CaptionedClip((str(i),), tuple(f"s{n}" for n in sorted(s)), "", None, (), f"x:{i}")
        for i, s in enumerate(sentences)
    ]
    found = [clip.event for clip in with_events(clips)]
    groups = list(range(len(sentences)))  # spread the smallest label until nothing changes
    for _ in sentences:
        groups = [min(groups[j] for j, t in enumerate(sentences) if s & t) for s in sentences]
    for i in range(len(sentences)):
        for j in range(len(sentences)):
            assert (found[i] == found[j]) == (groups[i] == groups[j])
