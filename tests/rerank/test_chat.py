"""The http verifier against an endpoint on this machine that answers, fails, stalls and lies."""

from __future__ import annotations

import email.utils
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from amrctl.data.predictions import Prediction, read_predictions, write_predictions
from amrctl.errors import AmrctlError
from amrctl.rerank.asking import Manner, ask
from amrctl.rerank.base import Candidate, VerifierError
from amrctl.rerank.cache import Cache
from amrctl.rerank.chat import ChatVerifier, checked_endpoint, probability, retry_after
from amrctl.rerank.sounds import Sounds
from tests.conftest import Cli
from tests.rerank.endpoint import Asked, Endpoint, Reply, answer, opinion, serving

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    where = tmp_path / "audio"
    where.mkdir()
    random = np.random.default_rng(1)
    for vid, loud in (("v1", 0.05), ("v2", 0.2)):
        rise = np.linspace(0.2, 1, 12 * 16000)
        soundfile.write(where / f"{vid}.wav", loud * rise * random.standard_normal(12 * 16000), 16000)
    return where


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as made:
        yield made


def windows(count: int, vid: str = "v1") -> list[Candidate]:
    return [Candidate("q1", "a bell rings", vid, 12.0, float(i), i + 2.0) for i in range(count)]


def judge(endpoint: Endpoint, recordings: Path, **options: object) -> ChatVerifier:
    return ChatVerifier(endpoint.url, "hearer", Sounds(recordings, ["v1", "v2"]), **options)  # type: ignore[arg-type]


def hasty(waits: list[float] | None = None, **how: int) -> Manner:
    kept = [] if waits is None else waits
    return Manner(batch=1, wait=kept.append, jitter=lambda: 0.0, **{"retries": 5, **how})


def test_what_is_sent_and_how_the_answer_is_read(endpoint: Endpoint, recordings: Path) -> None:
    made = judge(endpoint, recordings, key=KEY)
    question = Candidate("q1", "a bell\nrings", "v1", 12.0, 3.0, 5.0)
    [found] = made.score([question])
    [asked] = endpoint.asked
    assert (asked.path, asked.key) == ("/v1/chat/completions", f"Bearer {KEY}")
    body = {k: v for k, v in asked.body.items() if k != "messages"}
    wanted = {"model": "hearer", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    assert body == wanted
    assert [m["role"] for m in asked.body["messages"]] == ["system", "user"]
    assert asked.numbers == (4.0, 1.0, 3.0)
    assert "Description: a bell rings\n" in asked.text
    samples, _ = soundfile.read(recordings / "v1.wav", dtype="float32")
    assert asked.rate == 16000
    np.testing.assert_allclose(asked.samples, samples[2 * 16000 : 6 * 16000], atol=1e-4)
    p = opinion(asked)
    assert found == pytest.approx(0.8 * p / (0.8 * p + 0.8 * (1 - p)), abs=1e-9)
    assert KEY not in made.fingerprint() + json.dumps(made.facts()) + made.told


def test_an_answer_is_one_over_the_spellings() -> None:
    def body(**shares: float) -> bytes:
        listed = [{"token": t.replace("_", " "), "logprob": float(np.log(p))} for t, p in shares.items()]
        return json.dumps(
            {"choices": [{"logprobs": {"content": [{**listed[0], "top_logprobs": listed}]}}]}
        ).encode()

    assert probability(body(Yes=0.3, No=0.1, _yes=0.1)) == pytest.approx(0.8)
    assert probability(body(No=0.9)) == 0.0
    assert probability(body(YES_=0.2, maybe=0.7)) == 1.0
    assert probability(answer(0.25)) == pytest.approx(0.25)


def first(token: str, logprob: str) -> bytes:
    content = f'[{{"token": "{token}", "logprob": {logprob}}}]'
    return f'{{"choices": [{{"logprobs": {{"content": {content}}}}}]}}'.encode()


@pytest.mark.parametrize(
    ("body", "said", "again"),
    [
        (b"<html>", "not JSON (it begins with '<html>')", True),
        (b"\xff\xfe", "not JSON", True),
        (b"[" * 100_000, "not JSON", True),
        (b"[]", "no choices", True),
        (b'{"choices": []}', "no choices", True),
        (b'{"choices": [{"message": {"content": "Yes"}}]}', "no logprobs", False),
        (b'{"choices": [{"logprobs": {"content": []}}]}', "no logprobs", False),
        (first("Yes", '"x"'), "no logprobs", False),
        (first("Yes", "NaN"), "no logarithm", True),
        (first("Yes", "3"), "no logarithm", True),
        (first("I", "-0.1"), "neither Yes nor No", True),
        (first("Yes", "-9999"), "neither Yes nor No", True),
    ],
)
def test_malformed_answers_are_not_believed(body: bytes, said: str, again: bool) -> None:
    with pytest.raises(VerifierError) as caught:
        probability(body)
    assert said in str(caught.value)
    assert caught.value.again == again


def test_answers_do_not_depend_on_how_many_are_asked_at_once(endpoint: Endpoint, recordings: Path) -> None:
    questions = [*windows(9, "v1"), *windows(9, "v2")]
    made = judge(endpoint, recordings)

    def slow(asked: Asked, number: int) -> None:
        time.sleep(0.02)

    endpoint.behave = slow
    alone = ask(made, questions, manner=hasty()).scores
    assert endpoint.most == 1
    assert ask(made, questions, manner=hasty(concurrency=6)).scores == alone
    assert 2 <= endpoint.most <= 6
    assert len(set(alone)) == 18


def test_faults_that_pass_are_asked_again(endpoint: Endpoint, recordings: Path) -> None:
    faults = {
        0: Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "7"}),
        1: Reply(503, b"busy"),
        2: Reply(0),
        3: Reply(200, answer(0.5), cut=20),
        4: Reply(200, b"not json"),
    }
    endpoint.behave = lambda asked, number: faults.get(number)
    waits: list[float] = []
    made = judge(endpoint, recordings)
    found = ask(made, windows(2), manner=hasty(waits))
    assert waits == [7.0, 2.0, 4.0, 8.0, 16.0]
    assert len(endpoint.asked) == 7
    assert found.scores == ask(made, windows(2), manner=hasty()).scores


def test_a_server_that_stalls_is_left(endpoint: Endpoint, recordings: Path) -> None:
    gate = threading.Event()

    def stall(asked: Asked, number: int) -> Reply | None:
        if number == 0:
            gate.wait(20)
        return None

    endpoint.behave = stall
    made = judge(endpoint, recordings, timeout=0.3)
    waits: list[float] = []
    try:
        assert len(ask(made, windows(1), manner=hasty(waits)).scores) == 1
        assert waits == [1.0]
        endpoint.behave = lambda asked, number: stall(asked, 0)
        with pytest.raises(AmrctlError, match=r"window \[0, 2\] of v1: .* did not answer within 0\.3 s"):
            ask(made, windows(1), manner=hasty(retries=1))
    finally:
        gate.set()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, f'{{"error": {{"message": "bad {KEY}"}}}}'.encode()), r"bad \(key\) \(the key was sent"),
        (Reply(404, b'{"detail": "no such model"}'), "answers 404: no such model; are --endpoint and --mod"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/x"}), "sends elsewhere, which is not followed"),
        (Reply(302, b"", {"Location": "/v1/y"}), "sends elsewhere, which is not followed"),
        (Reply(413, b"too long\x1b[31m\r\nby far"), r"answers 413: too long \[31m by far; run the same"),
    ],
)  # fmt: skip
def test_refusals_are_told_at_once(reply: Reply, said: str, endpoint: Endpoint, recordings: Path) -> None:
    endpoint.behave = lambda asked, number: reply
    with pytest.raises(AmrctlError, match=said) as caught:
        ask(judge(endpoint, recordings, key=KEY), windows(3), manner=hasty())
    assert len(endpoint.asked) == 1
    assert KEY not in str(caught.value)


def test_no_server_at_all(recordings: Path) -> None:
    with serving() as gone:
        pass
    with pytest.raises(AmrctlError, match=r"no connection to http://127\.0\.0\.1:\d+ \(Connection refused\)"):
        ask(judge(gone, recordings), windows(1), manner=hasty(retries=1))


def test_addresses_and_keys() -> None:
    assert checked_endpoint("http://h:1/v1/") == "http://h:1/v1/chat/completions"
    assert checked_endpoint("https://h/x/chat/completions") == "https://h/x/chat/completions"
    for bad in ("h:80/v1", "ftp://h/v1", "http:///v1", "http://h:x/v1", "", "file:///etc/passwd"):
        with pytest.raises(AmrctlError, match="--endpoint is no web address"):
            checked_endpoint(bad)
    for secret in ("https://me:pass@h/v1", "https://h/v1?key=pass", "https://h/v1#pass"):
        with pytest.raises(AmrctlError, match="the address of h may hold no name") as caught:
            checked_endpoint(secret)
        assert "pass@" not in str(caught.value)
        assert "key=" not in str(caught.value)
    with pytest.raises(AmrctlError, match="the key is no word"):
        ChatVerifier("http://h/v1", "m", None, key="a\nb")  # type: ignore[arg-type]


def test_retry_after() -> None:
    assert [retry_after(v) for v in (None, "3", "2.5", "-1", "x", "inf", "nan")] == [0, 3, 2.5, 0, 0, 0, 0]
    assert 28 < retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 31
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def predictions(path: Path) -> Path:
    random = np.random.default_rng(2)
    rows = []
    for i in range(4):
        start = np.sort(random.uniform(0, 9, 6)).round(1)
        score = np.sort(random.uniform(0.1, 0.9, 6))[::-1]
        windows = np.stack([start, start + 2.5, score], axis=1)
        rows.append(Prediction(f"q{i}", f"sound {i}", f"v{i % 2 + 1}", 12.0, windows))
    meta = {"checkpoints": [{"sha256": "c"}], "parameters": {"trainable": 7, "frozen": 11}}
    write_predictions(path, rows, meta)
    return path


def test_the_command(
    cli: Cli, endpoint: Endpoint, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions(tmp_path / "p.jsonl")
    monkeypatch.setenv("MY_KEY", KEY)
    command = ["rerank", tmp_path / "p.jsonl", "--verifier", "http", "--endpoint", endpoint.url, "--model"]
    command += [
        "hearer",
        "--audio",
        recordings,
        "--cache",
        tmp_path / "c",
        "--api-key-env",
        "MY_KEY",
        "--json",
    ]
    done = cli(*command, "--out", tmp_path / "r.jsonl")
    assert done.code == 0, done.err
    assert (json.loads(done.out)["asked"], len(endpoint.asked)) == (24, 24)
    assert {asked.key for asked in endpoint.asked} == {f"Bearer {KEY}"}
    meta = read_predictions(tmp_path / "r.jsonl").meta
    host = endpoint.url.removesuffix("/v1")
    assert meta["verifier"] == f"http (hearer at {host}, prompt 1, beta 0.35, top 10)"
    assert meta["parameters"] == {"trainable": 7}  # nobody tells how large that model is
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert KEY not in written + done.out + done.err
    again = cli(*command, "--out", tmp_path / "s.jsonl")
    assert (json.loads(again.out)["asked"], len(endpoint.asked)) == (0, 24)
    assert cli(*command, "--beta", 0, "--out", tmp_path / "t.jsonl").code == 0
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()
    # submissions report the external model, and no total
    sent = ["submit", tmp_path / "r.jsonl", "--queries", tmp_path / "p.jsonl", "--label", "A_B_task6_1"]
    done = cli(*sent, "--out", tmp_path / "package")
    assert done.code == 0, done.err
    [form] = [yaml.safe_load(path.read_text()) for path in (tmp_path / "package").rglob("*.meta.yaml")]
    assert form["system"]["description"]["verifier"] == meta["verifier"]
    assert (form["system"]["complexity"]["total_parameters"]) == "unknown"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_before_a_stop_is_never_asked_again(
    how: signal.Signals, recordings: Path, tmp_path: Path
) -> None:
    predictions(tmp_path / "p.jsonl")
    gate = threading.Event()

    def six_then_wait(asked: Asked, number: int) -> Reply | None:
        if number >= 6:
            gate.wait(60)
        return None

    with serving(six_then_wait) as endpoint:
        # a process that is started in the background is deaf to SIGINT, and so are those that it starts
        heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        start = heeding + "from amrctl.cli.app import main; main()"
        command = [sys.executable, "-c", start, "rerank", "p.jsonl", "--verifier", "http", "--model", "m"]
        command += [
            "--endpoint",
            endpoint.url,
            "--audio",
            str(recordings),
            "--cache",
            "c",
            "--out",
            "r.jsonl",
        ]
        silent = subprocess.DEVNULL
        running = subprocess.Popen(command, cwd=tmp_path, stdout=silent, stderr=silent)
        until = time.monotonic() + 60
        while len(Cache(tmp_path / "c")) < 6 or len(endpoint.asked) < 10:
            assert time.monotonic() < until
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(how)
        if how == signal.SIGKILL:
            assert running.wait() == -signal.SIGKILL
            gate.set()
            answered = 6  # the four that were being asked are lost
        else:
            time.sleep(0.2)
            gate.set()
            assert running.wait() == 130
            answered = 10  # what was in flight is waited for
        assert not (tmp_path / "r.jsonl").exists()
        assert len(Cache(tmp_path / "c")) == answered
        assert len(endpoint.asked) == 10
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.asked) - 10 == 24 - answered
    assert len(read_predictions(tmp_path / "r.jsonl")) == 4
