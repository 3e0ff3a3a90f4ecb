"""`amrctl search` through the real command, and what its bars say."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from amrctl.cli.search import FINE, FINE_CURVE, PLAIN, bar, clock, curve
from tests.conftest import Cli
from tests.pipeline import heard
from tests.pipeline.heard import RATE, SENTENCES, Heard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    made = heard.make(tmp_path_factory.mktemp("heard") / "data")
    soundfile.write(made.audio.parent / "street.wav", heard.sound(75.5, (12, 19), (30, 48)), RATE)
    soundfile.write(made.audio.parent / "-street.wav", heard.sound(3, (1, 2), (0, 1)), RATE)
    return made


@pytest.fixture
def here(made: Heard, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made.audio.parent)
    return made.audio.parent


def test_json(cli: Cli, here: Path, made: Heard) -> None:
    common = ("search", "street.wav", *SENTENCES, "--checkpoint", "run/best.safetensors", "--device", "cpu")
    done = cli(*common, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["audio"] == "street.wav"
    assert found["duration"] == 75.5
    assert found["checkpoint"] == "run/best.safetensors"
    assert found["encoders"] == {"audio": ["logmel"], "text": ["words"]}
    assert found["rounding"] == 1  # as the whole seconds of the training labels
    assert [query["query"] for query in found["queries"]] == list(SENTENCES)
    for query in found["queries"]:
        assert set(query) == {"query", "moments"}
        assert len(query["moments"]) == 3
        scores = [moment["score"] for moment in query["moments"]]
        assert scores == sorted(scores, reverse=True)
        for moment in query["moments"]:
            assert set(moment) == {"start", "end", "score"}
            assert 0 <= moment["start"] < moment["end"] <= 75.5
    more = json.loads(cli(*common, "--json", "--saliency", "--top", 1, "--round", 0, "-q").out)
    for query in more["queries"]:
        assert len(query["moments"]) == 1
        assert len(query["saliency"]) == 76  # one for each second; the last half second counts
        assert query["saliency_step"] == 1


def test_table_fits_80_columns(cli: Cli, here: Path) -> None:
    done = cli("search", "street.wav", *SENTENCES, "--checkpoint", "run/best.safetensors", "--saliency",
               "--device", "cpu", "-q")  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    done = cli("search", "street.wav", *SENTENCES, "--checkpoint", "run/best.safetensors", "--saliency",
               "--device", "cpu")  # fmt: skip
    lines = done.out.splitlines()
    assert lines[0].startswith("street.wav: 1:15 (75.5 s)")
    tables = lines[:-2]
    assert max(map(len, tables)) <= 80
    for sentence in SENTENCES:
        at = next(i for i, line in enumerate(tables) if line.startswith(sentence))
        assert tables[at + 1].rstrip().endswith("1:15")
        ranks = [line.split()[0] for line in tables[at + 2 : at + 5]]
        assert ranks == ["1", "2", "3"]
        assert "█" in tables[at + 2]
        assert "saliency" in tables[at + 5]
    assert "0..1" in lines[-2]
    assert "raw" in lines[-1]


def test_a_plain_screen_gets_plain_signs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*more: str) -> str:
        raw = io.BytesIO()
        with monkeypatch.context() as patch:
            screen = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
            patch.setattr(sys, "stdout", screen)
            heard.amrctl("search", "street.wav", "ein Ton ertönt", "--device", "cpu", "--checkpoint",
                         "run/best.safetensors", *more)  # fmt: skip
        text = raw.getvalue().decode("ascii")
        screen.close()
        return text

    text = said("--saliency")
    assert "ein Ton ert?nt" in text
    assert "-#" in text
    assert json.loads(said("--json"))["queries"][0]["query"] == "ein Ton ertönt"


def test_a_name_that_begins_with_a_dash(cli: Cli, here: Path) -> None:
    done = cli("search", "--checkpoint", "run/best.safetensors", "--device", "cpu", "--json", "--",
               "-street.wav", "a tone")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["audio"] == "-street.wav"


def test_nothing_good_enough_is_said(cli: Cli, here: Path) -> None:
    done = cli("search", "street.wav", "hum", "--checkpoint", "run/best.safetensors", "--device", "cpu",
               "--min-score", "1")  # fmt: skip
    assert done.code == 0
    assert "hum: nothing scores 1 or more (best 0." in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.wav", "rain", "--checkpoint", "run/best.safetensors"], "none.wav: no such sound file"),
        (["train.jsonl", "rain", "--checkpoint", "run/best.safetensors"], "not a readable sound file"),
        (["street.wav", "", "--checkpoint", "run/best.safetensors"], "sentence 1 of 1 is empty"),
        (["street.wav", "rain", "--checkpoint", "street.wav"], "not a readable safetensors file"),
        (["street.wav", "rain", "--checkpoint", "run/best.safetensors", "--device", "tpu"], "--device tpu"),
        (
            ["street.wav", "rain", "--checkpoint", "run/best.safetensors", "--audio-encoder", "log"],
            "no audio encoder is called 'log'; did you mean 'logmel'?",
        ),
    ],
)
def test_mistakes(cli: Cli, here: Path, arguments: list[str], says: str) -> None:
    done = cli("search", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.99, 60, 3599, 3600, 36_061)] == [
        "0:00", "0:59", "1:00", "59:59", "1:00:00", "10:01:01"
    ]  # fmt: skip


def test_bar_by_hand() -> None:
    assert bar(2, 5, 10, 10, FINE) == "──███─────"
    assert bar(2.5, 5, 10, 10, FINE) == "──▐██─────"
    assert bar(2, 4.5, 10, 10, FINE) == "──██▌─────"
    assert bar(2, 4.5, 10, 10, PLAIN) == "--###-----"
    assert bar(0, 10, 10, 4, PLAIN) == "####"
    assert bar(3599.99, 3600, 3600, 10, FINE) == "─────────▐"


@given(st.floats(0.01, 1e5), st.floats(0, 1), st.floats(0, 1), st.integers(1, 80))
def test_a_moment_always_shows_where_it_is(duration: float, a: float, b: float, cells: int) -> None:
    start, end = sorted((a * duration, b * duration))
    text = bar(start, end, duration, cells, FINE)
    assert len(text) == cells
    marked = [i for i, sign in enumerate(text) if sign != "─"]
    assert marked
    assert marked == list(range(marked[0], marked[-1] + 1))
    cell = duration / cells
    assert abs(marked[0] * cell - start) <= cell * 1.01
    assert abs((marked[-1] + 1) * cell - end) <= cell * 1.01


def test_curve_shows_the_largest_value_it_covers() -> None:
    assert curve([0, 7, 1, 0, 0, 3.5], 1.0, 6.0, 3, "01234567") == "714"
    assert curve([0, 1], 1.0, 2.0, 4, "01") == "0011"
    assert curve([2, 2], 1.0, 2.0, 3, FINE_CURVE) == "▁▁▁"
    assert curve([5], 1.0, 0.1, 3, "01") == "000"
