"""Manifests: the real files, both formats, round trips, and a named line for every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl.data.manifest import Query, read_manifest, read_manifests, write_manifest
from amrctl.errors import ManifestError, OutputError

GOOD: dict[str, Any] = {
    "qid": "a_1",
    "query": "a dog barks",
    "duration": 60,
    "vid": "a",
    "relevant_windows": [[3, 9.5]],
}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def message(path: Path, **options: bool) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_line_becomes_a_query_with_the_labels_as_they_are(tmp_path: Path) -> None:
    extra = {"fg_dB": 0.7394922882103927}
    path = lines(tmp_path / "m.jsonl", "\ufeff" + json.dumps({**GOOD, **extra}), "", {**GOOD, "qid": 7})
    first, second = read_manifest(path)
    assert first == Query("a_1", "a dog barks", "a", 60.0, ((3.0, 9.5),), 1, False, extra)
    assert (second.qid, second.int_qid, second.line) == ("7", True, 3)
    write_manifest(tmp_path / "again.jsonl", [first, second])
    written = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert written == [{**GOOD, **extra}, {**GOOD, "qid": 7}]
    assert '"duration": 60,' in (tmp_path / "again.jsonl").read_text()  # not 60.0
    with pytest.raises(OutputError, match="--overwrite"):
        write_manifest(tmp_path / "again.jsonl", [first])


def test_blind_data_and_recordings(tmp_path: Path) -> None:
    blind = {k: v for k, v in GOOD.items() if k != "relevant_windows"}
    path = lines(
        tmp_path / "m.jsonl", blind, {**GOOD, "qid": "b_1", "vid": "b", "duration": 2.5, **_at(0, 1)}
    )
    manifest = read_manifest(path)
    assert manifest.queries[0].windows is None
    assert not manifest.has_windows
    assert not manifest.whole_seconds
    assert manifest.recordings == {"a": 60.0, "b": 2.5}
    assert list(manifest.by_qid) == ["a_1", "b_1"]
    assert message(path, need_windows=True).startswith(f"{path}:1: qid a_1: no relevant_windows")


def _at(start: Any, end: Any) -> dict[str, Any]:
    return {"relevant_windows": [[start, end]]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[1]{", ["not valid JSON"]),
        ("12", ["object per line", "a number"]),
        ('{"qid": "x", "duration": NaN}', ["NaN is not a finite"]),
        ('{"qid": "x", "duration": 1e999}', ["1e999 is not a finite"]),
        ("[" * 100_000, ["not valid JSON"]),
        ({**GOOD, "qid": None}, ["qid is null"]),
        ({**GOOD, "qid": True}, ["qid is true"]),
        ({**GOOD, "qid": 1.5}, ["qid is a number"]),
        ({k: v for k, v in GOOD.items() if k != "vid"}, ["a_1", "'vid' is missing"]),
        ({**GOOD, "vid": 3}, ["a_1", "vid is a number"]),
        ({**GOOD, "query": "  "}, ["a_1", "query is blank"]),
        ({**GOOD, "query": "\ud800"}, ["a_1", "query holds a character"]),
        ({**GOOD, "qid": "a\0"}, ["qid holds a character"]),
        ({**GOOD, "note": ["\ud800"]}, ["a_1", "surrogate"]),
        ({**GOOD, "duration": "60"}, ["a_1", "duration is text"]),
        ({**GOOD, "duration": False}, ["a_1", "duration is false"]),
        ({**GOOD, "duration": 10**400}, ["a_1", "duration is a number"]),
        ({**GOOD, "duration": 0}, ["a_1", "duration is 0 s"]),
        ({**GOOD, "relevant_windows": []}, ["a_1", "an empty list"]),
        ({**GOOD, "relevant_windows": {}}, ["a_1", "an object"]),
        ({**GOOD, "relevant_windows": [[1, 2, 3]]}, ["a_1", "[1, 2, 3]"]),
        ({**GOOD, "relevant_windows": [["1", 2]]}, ["a_1", "is not [start, end]"]),
        ({**GOOD, **_at(-1, 2)}, ["a_1", "[-1, 2] starts before"]),
        ({**GOOD, **_at(5, 5)}, ["a_1", "[5, 5] does not end"]),
        ({**GOOD, **_at(9, 5)}, ["a_1", "[9, 5] does not end"]),
        ({**GOOD, **_at(50, 62.5)}, ["a_1", "62.5 s in a 60 s", "--clip-windows"]),
        ({**GOOD, "qid": "z"}, ["qid z is on line 1"]),
        ({**GOOD, "qid": "a_2", "duration": 61}, ["a_2", "recording a", "61 s here", "60 s on line 1"]),
    ],
)
def test_every_fault_names_file_line_and_what(tmp_path: Path, record: Any, words: list[str]) -> None:
    path = lines(tmp_path / "m.jsonl", {**GOOD, "qid": "z"}, "", record)
    text = message(path)
    assert text.startswith(f"{path}:3: "), text
    assert all(word in text for word in words), text


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    assert message(tmp_path / "binary").startswith(f"{tmp_path / 'binary'}:1: not UTF-8")
    (tmp_path / "empty").write_text(" \n")
    assert "no query" in message(tmp_path / "empty")
    assert "cannot read" in message(tmp_path / "absent")
    assert "cannot read" in message(tmp_path)


def test_late_windows_are_counted_once_and_never_changed(tmp_path: Path) -> None:
    late = {**GOOD, "relevant_windows": [[0, 60], [59, 61], [60, 61], [61, 62]]}
    manifest = read_manifest(lines(tmp_path / "m.jsonl", late))
    assert list(manifest.queries[0].windows or ()) == [(0, 60), (59, 61), (60, 61), (61, 62)]
    (note,) = manifest.notes
    assert "3 windows end up to 2 s after" in note
    assert "2 of them start at its end" in note
    assert note.startswith(f"{tmp_path / 'm.jsonl'}: ")
    assert note.endswith("first: line 1, qid a_1")
    far = lines(tmp_path / "far.jsonl", {**GOOD, "relevant_windows": [[1, 4800]]})
    assert "4800 s in a 60 s recording" in message(far)
    manifest = read_manifest(far, clip_windows=True)
    assert list(manifest.queries[0].windows or ()) == [(1, 4800)]
    assert "1 window ends more than 2 s" in manifest.notes[0]


def test_several_files_are_one_manifest(tmp_path: Path) -> None:
    one = lines(tmp_path / "1.jsonl", GOOD)
    two = lines(tmp_path / "2.jsonl", {**GOOD, "qid": "a_2"})
    both = read_manifests([one, two])
    assert ([q.qid for q in both], both.path) == (["a_1", "a_2"], None)
    assert read_manifests([one]).path == one
    with pytest.raises(ManifestError, match=r"2.jsonl:1: qid a_1 is also at .*1.jsonl:1"):
        read_manifests([one, lines(two, GOOD)])
    with pytest.raises(ManifestError, match=r"duration 61 s here and 60 s at .*1.jsonl:1"):
        read_manifests([one, lines(two, {**GOOD, "qid": "a_2", "duration": 61})])
    with pytest.raises(ManifestError, match="no manifest"):
        read_manifests([])


CASTELLA = [
    {
        "yid": "x",
        "global_caption": "noise",
        "duration": 20,
        "num_moments": 9,
        "moments": [
            {"local_caption": "a bell", "timestamps": [[1, 3], [4, 4]]},
            {"local_caption": "a dog", "timestamps": [[2, 2]]},
            {"local_caption": "a cat", "timestamps": [[20, 21]]},
        ],
    },
    {"yid": "y", "global_caption": "rain", "duration": 99, "num_moments": 0, "moments": []},
]


def test_castellas_own_json_gives_the_official_qids(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(CASTELLA, indent=1))
    manifest = read_manifest(path)
    assert [(q.qid, q.query, q.vid, q.duration, q.windows) for q in manifest] == [
        ("x_1", "a bell", "x", 20.0, ((1.0, 3.0),)),
        ("x_3", "a cat", "x", 20.0, ((20.0, 21.0),)),
    ]
    assert [q.line for q in manifest] == [2, 2]
    late, skipped, zero = manifest.notes
    assert "1 window ends up to 2 s after" in late
    assert "1 recording without moments" in skipped
    assert "2 windows of length zero skipped, 1 query left without any dropped" in zero


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n{"yid": "x"}]', ["json:2: ", "recording x", "'moments' is missing"]),
        ('[\n{"yid": 4}]', ["json:2: ", "yid is a number"]),
        ('[\n\n{"yid": "x", "moments": [3]}]', ["json:3: ", "moments"]),
        (
            '[\n{"yid": "x", "moments": [{"local_caption": "b"}]}]',
            ["json:2: ", "x_1", "'timestamps' is missing"],
        ),
        (
            '[\n{"yid": "x", "moments": [{"timestamps": [[1, 2]]}]}]',
            ["json:2: ", "x_1", "'local_caption' is missing"],
        ),
        ('[\n{"yid": "x", "moments": []}\n', ["json:2: ", "not closed"]),
        ('[\n{"yid": "x",, "moments": []}\n]', ["json:2: ", "not valid JSON"]),
        ("[\n\n3]", ["json:3: ", "a number"]),
        ("[\n]\n1", ["json:3: ", "text after"]),
        ("[\n NaN]", ["json:2: ", "finite"]),
        ("[]", ["no query"]),
        ("[", ["json:1: ", "not valid JSON"]),
    ],
)
def test_castella_faults(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    assert all(word in message(path) for word in words), message(path)


def test_the_real_annotations(shared: Path) -> None:
    folder = shared / "data" / "annotations"
    train = folder / "castella_train_release.jsonl"
    assert message(train) == (
        f"{train}:656: qid 67AE9ZKvECs_1: window ends at 4800 s in a 299 s recording; fix the line or go on "
        "with --clip-windows"
    )
    manifest = read_manifest(train, clip_windows=True)
    assert (len(manifest), len(manifest.recordings), manifest.whole_seconds) == (2182, 876, True)
    assert sum(len(q.windows or ()) for q in manifest) == 6157
    assert len(manifest.notes) == 2
    assert "161 windows end up to 2 s" in manifest.notes[0]
    test = read_manifest(folder / "castella_test_release.jsonl", need_windows=True)
    assert (len(test), len(test.recordings)) == (1347, 566)
    assert test.by_qid["Rp4Ct_TQvAM_1"].windows is not None
    assert max(test.by_qid["Rp4Ct_TQvAM_1"].windows)[1] == 301
    assert "99 windows" in test.notes[0]
    blind = read_manifest(folder / "dcase2026_evaluation.jsonl")
    assert (len(blind), blind.has_windows) == (177, False)
    clotho = read_manifest(folder / "clotho_moment_val_head400.jsonl")
    assert not clotho.whole_seconds
    assert "fg_dB" in clotho.queries[0].extra


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
SECONDS = st.one_of(st.integers(0, 10_000), st.floats(0, 1e6))


@st.composite
def queries(draw: st.DrawFn) -> list[Query]:
    durations: dict[str, float] = {}
    found: dict[str, Query] = {}
    for _ in range(draw(st.integers(1, 5))):
        int_qid = draw(st.booleans())
        qid = str(draw(st.integers(-(10**30), 10**30))) if int_qid else draw(TEXT)
        vid = draw(TEXT)
        duration = durations.setdefault(vid, float(draw(SECONDS)) + 1)
        ends = st.floats(0, duration + 2, exclude_min=True)
        windows = draw(
            st.none()
            | st.lists(
                st.tuples(st.floats(0, duration), ends).filter(lambda w: w[0] < w[1]), min_size=1, max_size=3
            )
        )
        extra = draw(st.dictionaries(st.sampled_from(["fg_dB", "n", "\u2028"]), st.integers() | TEXT))
        found[qid] = Query(
            qid, draw(TEXT), vid, duration, tuple(windows) if windows else None, 0, int_qid, extra
        )
    return list(found.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queries())
def test_what_is_written_is_read_back(tmp_path: Path, made: list[Query]) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, made, overwrite=True)
    read = read_manifest(path)
    assert list(read) == made
    first = path.read_bytes()
    write_manifest(path, read, overwrite=True)
    assert path.read_bytes() == first


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("qid", "query", "vid", "duration", "relevant_windows")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda change: json.dumps({**GOOD, **change}))
    | st.text(),
    st.binary(max_size=3),
    st.integers(0, 40),
    st.booleans(),
)
def test_a_broken_file_gives_a_manifest_error_and_nothing_else(
    tmp_path: Path, line: str, junk: bytes, at: int, castella: bool
) -> None:
    data = json.dumps(CASTELLA).encode() if castella else line.encode("utf-8", "surrogatepass")
    path = tmp_path / "m.jsonl"
    path.write_bytes(data[:at] + junk + data[at:])
    try:
        read = read_manifest(path)
    except ManifestError as error:
        assert str(path) in str(error)  # noqa: PT017  both outcomes are right, a third would escape
    else:
        assert len(read) >= 1
