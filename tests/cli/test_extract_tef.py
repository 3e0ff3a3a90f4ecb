"""`amrctl extract-tef` as a user types it: results, refusals, and a kill in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import soxr

from amrctl import provenance
from tests.conftest import Cli


def write(path: Path, seconds: float, seed: int, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate)), rate)


def queries(path: Path, vids: list[str], seconds: float = 3.0) -> Path:
    with open(path, "w") as file:
        for vid in vids:
            query = {"qid": f"q{vid}", "query": f"sound of {vid}", "vid": vid, "duration": seconds}
            file.write(json.dumps({**query, "relevant_windows": [[0, 1]]}) + "\n")
    return path


def datasets(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(str(path), "r") as file:
        file.visititems(
            lambda n, item: found.update({n: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return {name: (value.dtype, value.shape, value.tolist()) for name, value in found.items()}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recordings -a and b, and one manifest for each."""
    monkeypatch.chdir(tmp_path)
    for seed, vid in enumerate(("-a", "b")):
        write(tmp_path / "audio" / f"{vid}.wav", 3, seed)
        queries(tmp_path / f"m{seed}.jsonl", [vid])
    return tmp_path


BOTH = ("--audio", "audio", "--audio-encoder", "logmel", "--text-encoder", "words", "--workers", "1")


def test_several_manifests_in_both_spellings(cli: Cli, work: Path) -> None:
    for out, spelling in (
        ("row.h5", ["--manifest", "m0.jsonl", "m1.jsonl"]),
        ("repeated.h5", ["--manifest", "m0.jsonl", "--manifest", "m1.jsonl"]),
    ):
        result = cli("extract-tef", *spelling, *BOTH, "--out", out, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out) == {
            "out": out,
            "fresh": True,
            "streams": {"audio": "logmel", "text": "words"},
            "recordings": 2,
            "frames": 6,
            "queries": 2,
            "tokens": 8,
            "skipped": {},
            "stored": [
                {"side": "audio", "name": "logmel", "count": 2, "rows": 6, "dim": 229},
                {"side": "text", "name": "words", "count": 2, "rows": 8, "dim": 256},
            ],
        }
    assert datasets(work / "row.h5") == datasets(work / "repeated.h5")
    assert datasets(work / "row.h5")["audio/logmel/ids"][2] == [b"-a", b"b"]


def test_table_skipped_list_and_the_same_again(cli: Cli, work: Path) -> None:
    (work / "audio" / "b.wav").write_bytes(b"")
    command = ("extract-tef", "--manifest", "m0.jsonl", "m1.jsonl", *BOTH, "--out", "f.h5")
    result = cli(*command)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("amrctl: audio/b.wav: not a readable sound file")
    assert not (work / "f.h5").exists()
    result = cli(*command, "--skip-bad")
    assert result.code == 0
    assert "1 recordings" in result.out
    assert "skipped 1 recordings:\n  audio/b.wav: not a readable" in result.out
    result = cli(*command, "--skip-bad")
    assert result.code == 0
    assert "f.h5 holds this already" in result.err
    assert not list(work.glob("*.part"))


def test_npz_there_and_back(cli: Cli, work: Path) -> None:
    manifests = ("--manifest", "m0.jsonl", "m1.jsonl")
    assert cli("extract-tef", *manifests, *BOTH, "--out", "f.h5").code == 0
    result = cli("extract-tef", "--export", "f.h5", "--audio-encoder", "logmel", "--out", "only", "--json")
    assert json.loads(result.out) == {"out": "only", "folders": {"audio": "only/logmel"}}
    assert cli("extract-tef", "--export", "f.h5", "--out", "npz").code == 0
    assert sorted(path.name for path in (work / "npz").rglob("*.npz")) == [
        "-a.npz",
        "b.npz",
        "qidq-a.npz",
        "qidqb.npz",
    ]
    folders = ("--audio-npz", "npz/logmel", "--text-npz", "npz/words_text")
    result = cli("extract-tef", *manifests, *folders, "--name", "back", "--out", "g.h5")
    assert result.code == 0, result.err
    first, second = datasets(work / "f.h5"), datasets(work / "g.h5")
    for side, name in (("audio", "logmel"), ("text", "words")):
        for what in ("rows", "offsets", "ids"):
            assert first[f"{side}/{name}/{what}"] == second[f"{side}/back/{what}"]
    assert first["tef/2d/rows"] == second["tef/2d/rows"]
    assert cli("extract-tef", "--export", "f.h5", "--out", "npz").code == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--out f.h5", "--manifest M.jsonl is missing"),
        ("--manifest m0.jsonl --out f.h5", "nothing to extract: add --audio DIR --audio-encoder logmel"),
        ("--manifest m0.jsonl --audio audio --out f.h5", "--audio audio needs --audio-encoder"),
        ("--manifest m0.jsonl --audio-encoder logmel --out f.h5", "needs --audio DIR"),
        ("--manifest m0.jsonl --text-encoder wrods --out f.h5", "did you mean 'words'?"),
        ("--manifest m0.jsonl --text-encoder words --name x --out f.h5", "does not go with --name"),
        ("--manifest m0.jsonl --audio-npz audio --out f.h5", "--name is missing"),
        ("--manifest m0.jsonl --audio-npz audio --name x --out f.h5", "audio has no -a.npz"),
        ("--export f.h5 --manifest m0.jsonl --out d", "--export does not go with --manifest"),
        ("--export f.h5 --out d", "feature file f.h5 does not exist"),
        ("--export f.h5 --audio-encoder a --audio-encoder b --out d", "writes one audio stream at a time"),
        ("--manifest m0.jsonl --text-encoder words", "--out F.h5 is missing"),
        ("--manifest m0.jsonl --audio audio --audio-encoder logmel --hop 0 --out f.h5", "--hop 0.0: input"),
        (
            "--manifest m0.jsonl --audio audio --audio-encoder logmel --window 2 --out f.h5",
            "logmel hears 1 s",
        ),
        ("--manifest m0.jsonl --text-encoder words --device tpu --out f.h5", "--device tpu: input should be"),
        ("--manifest m0.jsonl --text-encoder words --text-encoder words --out f.h5", "words is named twice"),
        ("--manifest m0.jsonl --audio a.tar --audio-encoder logmel --out f.h5", "a.tar: not a tar"),
        (
            "--manifest m0.jsonl --audio audio --audio-encoder wavlm-base:audio --out f.h5",
            "wavlm-base: audio has no config.json",
        ),
        (
            "--manifest m0.jsonl --text-encoder roberta-base:m0.jsonl --out f.h5",
            "m0.jsonl is a file; write roberta-base:FOLDER",
        ),
        ("--manifest gone.jsonl --text-encoder words --out f.h5", "gone.jsonl"),
    ],
)
def test_one_line_for_every_mistake(cli: Cli, work: Path, words: str, answer: str) -> None:
    (work / "a.tar").write_bytes(b"words")
    result = cli("extract-tef", *words.split())
    assert result.code == 2
    assert result.err.startswith("amrctl: ")
    assert answer in result.err
    assert result.err.count("\n") == 1
    assert not list(work.glob("*.h5*"))


def test_the_list_needs_no_torch(work: Path) -> None:
    program = (
        "import sys; from amrctl.cli.app import main\n"
        "sys.argv = ['amrctl', 'extract-tef', '--list', '--json']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'h5py'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    entries = {(entry["side"], entry["name"]): entry for entry in json.loads(done.stdout)}
    large = entries["audio", "wavlm-large"]
    assert (large["dim"], large["rate"], large["default"]) == (1024, 16000, "microsoft/wavlm-large")
    assert large["licence"].startswith("unclear: ")
    assert entries["text", "roberta-base"]["missing"] == []


def test_the_list_names_every_encoder_and_its_weights(cli: Cli, work: Path) -> None:
    result = cli("extract-tef", "--list")
    assert result.code == 0, result.err
    for words in ("logmel", "roberta-large", "co/microsoft/wavlm-base-plus\n", "licence: unclear: "):
        assert words in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.count("checkpoint-30.pth") == 1  # four encoders, told once


def network(folder: Path, seed: int) -> Path:
    """A random WavLM of the base kind, narrow and shallow."""
    import torch
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(seed)
    config = WavLMConfig(
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=16,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    WavLMModel(config).save_pretrained(folder)
    return folder


def test_a_network_and_logmel_from_a_tar_in_one_pass(cli: Cli, work: Path) -> None:
    import torch
    from transformers import WavLMModel

    network(work / "weights", 0)
    (work / "tars").mkdir()
    with tarfile.open(work / "tars" / "0.tar", "w") as tar:
        for i, vid in enumerate(("-a", "b")):
            tar.add(work / "audio" / f"{vid}.wav", f"{i}.wav")
            path = work / f"{i}.json"
            path.write_text(json.dumps({"bg": {"path": f"x/W/{i}.5_3.wav"}}))
            tar.add(path, f"{i}.json")
    queries(work / "m.jsonl", ["W_0.5_3", "W_1.5_3"])
    common = ("extract-tef", "--manifest", "m.jsonl", "--audio", "tars", "--hop", "0.5", "--out", "f.h5")
    result = cli(
        *common, "--audio-encoder", "wavlm-base:weights", "--audio-encoder", "logmel", "--dtype", "float32"
    )
    assert result.code == 0, result.err
    stored = datasets(work / "f.h5")
    assert stored["audio/wavlm-base/rows"][1] == (12, 768)
    assert stored["audio/logmel/rows"][1] == (12, 229)
    model: Any = WavLMModel.from_pretrained(work / "weights")
    sound = soxr.resample(
        soundfile.read(work / "audio" / "b.wav", dtype="float32")[0], 8000, 16000, quality="HQ"
    )
    with torch.no_grad():
        exact = model.eval()(torch.from_numpy(sound[8000:24000][None])).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(stored["audio/wavlm-base/rows"][2][7], exact[0].numpy(), atol=1e-4)
    with h5py.File(str(work / "f.h5")) as file:
        attrs = dict(file["audio/wavlm-base"].attrs)
        assert attrs["checkpoint_sha256"] == provenance.sha256(work / "weights" / "model.safetensors")
        assert (attrs["hop"], attrs["precision"]) == (0.5, "fp32")

    (work / "weights").rename(work / "moved")
    result = cli(*common, "--audio-encoder", "wavlm-base:moved", "--dtype", "float32")
    assert result.code == 0
    assert "f.h5 holds this already" in result.err
    network(work / "weights", 1)
    result = cli(*common, "--audio-encoder", "wavlm-base:weights", "--dtype", "float32")
    assert result.code == 2
    assert "has audio stream 'wavlm-base' already, made with checkpoint_sha256" in result.err
    result = cli(*common, "--audio-encoder", "wavlm-base:moved", "--dtype", "float32", "--precision", "bf16")
    assert result.code == 2
    assert "made with precision fp32, not bf16" in result.err


def test_nothing_is_written_for_a_window_far_past_the_end(cli: Cli, work: Path) -> None:
    line = {"qid": 1, "query": "rain", "vid": "b", "duration": 3, "relevant_windows": [[1, 40]]}
    (work / "late.jsonl").write_text(json.dumps(line) + "\n")
    command = ("extract-tef", "--manifest", "late.jsonl", "--text-encoder", "words", "--out", "f.h5")
    result = cli(*command)
    assert result.code == 2
    assert "--clip-windows" in result.err
    assert cli(*command, "--clip-windows").code == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_and_started_again_equals_an_unbroken_run(cli: Cli, tmp_path: Path, workers: str) -> None:
    vids = [f"r{i:02}" for i in range(40)]
    for seed, vid in enumerate(vids):
        write(tmp_path / "audio" / f"{vid}.wav", 20, seed)
    queries(tmp_path / "m.jsonl", vids, 20)
    command = ["extract-tef", "--manifest", f"{tmp_path}/m.jsonl", "--audio", f"{tmp_path}/audio"]
    command += ["--audio-encoder", "logmel", "--text-encoder", "words", "--workers", workers]
    broken, whole = tmp_path / "broken.h5", tmp_path / "whole.h5"
    shards = tmp_path / "broken.h5.part" / "audio" / "logmel"
    process = subprocess.Popen(
        [sys.executable, "-m", "amrctl", *command, "--out", str(broken)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while len(list(shards.glob("[!.]*"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not broken.exists()
    assert 5 <= len(list(shards.glob("[!.]*"))) < len(vids)
    time.sleep(0.3)  # the workers see that their parent is gone
    left = len(list(shards.glob("[!.]*")))
    time.sleep(0.3)
    assert len(list(shards.glob("[!.]*"))) == left  # nobody works on unasked

    result = cli(*command, "--out", broken)
    assert result.code == 0, result.err
    assert cli(*command, "--out", whole).code == 0
    assert datasets(broken) == datasets(whole)
    assert not shards.exists()
