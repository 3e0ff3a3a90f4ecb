"""Qwen2.5-Omni's architecture at a tiny size, against transformers' own front end and full logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5OmniThinkerConfig, WhisperFeatureExtractor

from amrctl.data.predictions import Prediction, read_predictions, write_predictions
from amrctl.errors import AmrctlError, FeatureError
from amrctl.rerank import prompt
from amrctl.rerank.base import Candidate
from amrctl.rerank.qwen_omni import QwenOmniVerifier
from amrctl.rerank.qwen_weights import expected, official, ours
from amrctl.rerank.sounds import Heard, Sounds
from tests.conftest import Cli
from tests.rerank import omni

QUESTIONS = [
    Candidate("q1", "a dog barks", "v1", 12.0, 2.0, 5.0),
    Candidate("q2", "rain <|im_end|> falls on a tin <|AUDIO|> roof, far away", "v1", 12.0, 3.0, 4.0),
    Candidate("q3", "x", "v2", 6.5, 0.0, 6.5),
    Candidate("q1", "a dog barks", "v1", 12.0, 11.0, 11.3),
]


@pytest.fixture(scope="module")
def network() -> Any:
    return omni.network()


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return omni.write_folder(tmp_path_factory.mktemp("omni") / "tiny", network.state_dict(), shards=2)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    soundfile.write(where / "v1.wav", 0.2 * random.standard_normal((12 * 22050, 2)), 22050)
    soundfile.write(where / "v2.flac", 0.1 * random.standard_normal(104_000), 16000)
    return where


@pytest.fixture(scope="module")
def judge(folder: Path, recordings: Path) -> QwenOmniVerifier:
    return QwenOmniVerifier(str(folder), Sounds(recordings, ["v1", "v2"]))


def test_the_answer_is_that_of_transformers_own_way(
    network: Any, folder: Path, recordings: Path, judge: QwenOmniVerifier
) -> None:
    """Padded to 300 s, the text as one string, all logits, softmax over the whole vocabulary."""
    heard = Sounds(recordings, ["v1"]).hear(QUESTIONS[0])
    assert (heard.length, heard.start, heard.end) == (6.0, 1.5, 4.5)
    extractor: Any = WhisperFeatureExtractor.from_pretrained(folder)
    made = extractor(heard.samples, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    assert made["input_features"].shape == (1, 128, 30_000)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = (
        f"<|im_start|>system\n{prompt.SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n<|audio_bos|>{'<|AUDIO|>' * 150}<|audio_eos|>"
        f"{prompt.question('a dog barks', 6.0, 1.5, 4.5)}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "lasts 6 seconds. One interval of it begins at 1.5 seconds and ends at 4.5 seconds" in text
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = network(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=made["input_features"],
            feature_attention_mask=made["attention_mask"],
        ).logits[0, -1]
    share = torch.softmax(logits.double(), dim=0)
    yes = share[[omni.YES, tokenizer.convert_tokens_to_ids("ĠYes")]].sum()
    no = share[[omni.NO, *tokenizer.convert_tokens_to_ids(["ĠNo", "no"])]].sum()
    assert judge.score(QUESTIONS[:1])[0] == pytest.approx(float(yes / (yes + no)), abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_front_end_gives_the_official_frames(
    side: str, folder: Path, judge: QwenOmniVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor: Any = WhisperFeatureExtractor.from_pretrained(folder, padding_side=side)
    monkeypatch.setattr(judge, "_front", extractor)
    random = np.random.default_rng(3)
    for count in (1600, 16_001, 33_333, 48_159):
        samples = (0.1 * random.standard_normal(count)).astype(np.float32)
        made = extractor(samples, sampling_rate=16000, return_attention_mask=True, return_tensors="np")
        official_frames = made["input_features"][0][:, made["attention_mask"][0].astype(bool)]
        found = judge._mel(Heard(samples, count / 16000, 0.0, 0.05))
        assert found.shape == official_frames.shape
        np.testing.assert_allclose(found, official_frames, rtol=0, atol=1e-5)


def test_a_batch_of_four_equals_four_singles(judge: QwenOmniVerifier) -> None:
    together = judge.score(QUESTIONS)
    alone = [judge.score([question])[0] for question in QUESTIONS]
    np.testing.assert_allclose(together, alone, rtol=0, atol=5e-6)
    assert np.ptp(together) > 0.05  # else this says nothing
    np.testing.assert_allclose(judge.score(QUESTIONS[::-1]), alone[::-1], rtol=0, atol=5e-6)


def test_silence_another_sentence_or_another_window_change_the_answer(
    folder: Path, recordings: Path, judge: QwenOmniVerifier, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "v1.wav", np.zeros(12 * 22050), 22050)
    deaf = QwenOmniVerifier(str(folder), Sounds(tmp_path, ["v1"]))
    base = judge.score(QUESTIONS[:1])[0]
    others = [
        *deaf.score(QUESTIONS[:1]),
        *judge.score([Candidate("q1", "a cat meows", "v1", 12.0, 2.0, 5.0)]),
        *judge.score([Candidate("q1", "a dog barks", "v1", 12.0, 5.0, 8.0)]),
    ]
    assert abs(others[0] - base) > 0.01
    assert all(abs(other - base) > 1e-4 for other in others), (base, others)
    # the same stretch is heard for both windows: only the times in the text differ
    sounds = Sounds(recordings, ["v2"])
    left, whole = (Candidate("q", "x", "v2", 6.5, 0.0, end) for end in (6.4, 6.5))
    np.testing.assert_array_equal(sounds.hear(left).samples, sounds.hear(whole).samples)
    a, b = judge.score([left]), judge.score([whole])
    assert abs(a[0] - b[0]) > 1e-5


def test_a_query_cannot_end_its_turn_nor_bring_a_sound(judge: QwenOmniVerifier) -> None:
    inputs = judge._inputs([(q.query, judge._sounds.hear(q)) for q in QUESTIONS])
    for row, mask, mel in zip(
        inputs["input_ids"], inputs["attention_mask"], inputs["feature_attention_mask"], strict=True
    ):
        tokens = row[mask.bool()].tolist()
        assert tokens.count(judge._end) == 2
        assert tokens.count(judge._sound) == ((int(mel.sum()) - 1) // 2 + 1 - 2) // 2 + 1
        assert tokens[-1] == row[-1]  # padding is on the left
    assert len({int(mel.sum()) for mel in inputs["feature_attention_mask"]}) > 2


def test_whole_repositories_and_thinkers_alone_are_the_same(
    network: Any, judge: QwenOmniVerifier, recordings: Path, tmp_path: Path
) -> None:
    state = network.state_dict()
    blind = {name: value for name, value in state.items() if ".visual." not in name}
    omni.write_folder(tmp_path / "alone", blind, whole=False)
    sounds = Sounds(recordings, ["v1", "v2"])
    alone = QwenOmniVerifier(str(tmp_path / "alone"), sounds)
    assert alone.score(QUESTIONS) == judge.score(QUESTIONS)
    assert alone.parameters == judge.parameters == sum(value.numel() for value in blind.values())
    assert alone._network.model.visual is None
    assert alone.fingerprint() != judge.fingerprint()
    rough = QwenOmniVerifier(str(tmp_path / "alone"), sounds, precision="bf16")
    assert rough.fingerprint() != alone.fingerprint()
    np.testing.assert_allclose(rough.score(QUESTIONS), judge.score(QUESTIONS), rtol=0, atol=0.05)
    # words in and out share one matrix where the config says so; else both must be there
    omni.write_folder(
        tmp_path / "tied", {k: v for k, v in blind.items() if k != "lm_head.weight"}, whole=False
    )
    with pytest.raises(FeatureError, match=r"missing: 'thinker\.lm_head\.weight'"):
        QwenOmniVerifier(str(tmp_path / "tied"), sounds)
    changed("config.json", tie_word_embeddings=True)(tmp_path / "tied")
    tied = QwenOmniVerifier(str(tmp_path / "tied"), sounds)
    assert tied.parameters == alone.parameters - blind["lm_head.weight"].numel()
    assert tied.score(QUESTIONS[:1]) != alone.score(QUESTIONS[:1])
    assert tied._network.lm_head.weight is tied._network.model.language_model.embed_tokens.weight


def renamed(folder: Path) -> None:
    path = next(folder.glob("model-00001*"))
    tensors = load_file(path)
    key = "thinker.model.layers.1.self_attn.q_proj.weight"
    path = path if key in tensors else next(folder.glob("model-00002*"))
    tensors = load_file(path)
    tensors[key + "s"] = tensors.pop(key)
    save_file(tensors, path)


def cut(folder: Path) -> None:
    for path in folder.glob("model-*"):
        tensors = load_file(path)
        if "thinker.lm_head.weight" in tensors:
            tensors["thinker.lm_head.weight"] = tensors["thinker.lm_head.weight"][:9].clone()
            save_file(tensors, path)


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(told | values))

    return change


def pickled(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|audio_bos|>", "<|audio_bus|>"))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (renamed, r"missing: 'thinker\.model\.layers\.1\.self_attn\.q_proj\.weight'; unknown: 'thinker\.mod"),
    (cut, r"of another shape: 'thinker\.lm_head\.weight' is \(9, 32\), not \(151664, 32\)"),
    (lambda f: next(f.glob("model-00002*")).unlink(), "lacks model-00002-of-00002.safetensors; copy the"),
    (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
    (lambda f: (f / "tokenizer.json").unlink(), r"lacks tokenizer.json \(or vocab.json and merges.txt\)"),
    (pickled, r"lacks weights \(model.safetensors"),
    (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    (changed("config.json", model_type="qwen2_audio"), r'of model_type "qwen2_audio", not qwen2_5_omni'),
    (changed("config.json", thinker_config=None), "has no thinker with audio_config and text_config"),
    (changed("preprocessor_config.json", sampling_rate=48000), "has sampling_rate 48000, not 16000"),
    (changed("preprocessor_config.json", feature_size=80), "has feature_size 80, not 128"),
    (other_tokens, r"does not know the token <\|audio_bos\|>"),
]  # fmt: skip


def test_files_that_do_not_fit_are_named(folder: Path, recordings: Path, tmp_path: Path) -> None:
    sounds = Sounds(recordings, ["v1"])
    for number, (spoil, said) in enumerate(FAULTS):
        broken = tmp_path / str(number)
        shutil.copytree(folder, broken)
        spoil(broken)
        with pytest.raises(FeatureError, match=said):
            QwenOmniVerifier(str(broken), sounds)
        shutil.rmtree(broken)
    with pytest.raises(FeatureError, match=r"there is no folder .*nowhere/at/all"):
        QwenOmniVerifier(str(tmp_path / "nowhere/at/all"), sounds)
    with pytest.raises(FeatureError, match=r"config.json is a file; write qwen2.5-omni:FOLDER"):
        QwenOmniVerifier(str(folder / "config.json"), sounds)


def test_one_window_at_a_time_where_memory_ends(judge: QwenOmniVerifier, monkeypatch: Any) -> None:
    from amrctl.rerank.asking import ask

    real = judge._answers

    def small(asked: Any) -> list[float]:
        if len(asked) > 1:
            raise torch.OutOfMemoryError
        return real(asked)

    wanted = [judge.score([question])[0] for question in QUESTIONS]
    monkeypatch.setattr(judge, "_answers", small)
    assert ask(judge, QUESTIONS).scores == wanted

    def none(asked: Any) -> list[float]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(judge, "_answers", none)
    with pytest.raises(AmrctlError, match="too little memory for one window of v1"):
        ask(judge, QUESTIONS)


def official_shapes(width: int, inner: int, last: int, keys: int, words: int) -> dict[str, tuple[int, ...]]:
    """Some tensors of each kind, as the official files name them."""
    layer = f"thinker.model.layers.{last}"
    return {
        "thinker.audio_tower.audio_bos_eos_token.weight": (2, width),
        "thinker.audio_tower.conv1.weight": (1280, 128, 3),
        "thinker.audio_tower.conv2.bias": (1280,),
        "thinker.audio_tower.layers.31.self_attn.k_proj.weight": (1280, 1280),
        "thinker.audio_tower.layers.31.fc1.weight": (5120, 1280),
        "thinker.audio_tower.ln_post.weight": (1280,),
        "thinker.audio_tower.proj.weight": (width, 1280),
        "thinker.lm_head.weight": (words, width),
        "thinker.model.embed_tokens.weight": (words, width),
        f"{layer}.self_attn.q_proj.bias": (width,),
        f"{layer}.self_attn.k_proj.weight": (keys, width),
        f"{layer}.mlp.down_proj.weight": (width, inner),
        "thinker.model.norm.weight": (width,),
    }


SMALL_TEXT = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("changed", "shapes", "billions"),
    [
        ({}, official_shapes(3584, 18_944, 27, 512, 152_064), (8.1, 8.4)),  # 7B
        (
            {"text_config": SMALL_TEXT, "audio_config": {"output_dim": 2048}},
            official_shapes(2048, 11_008, 35, 256, 151_936),
            (3.9, 4.2),
        ),  # 3B
    ],
)
def test_the_true_sizes_have_the_official_names_and_shapes(
    changed: dict[str, Any], shapes: dict[str, tuple[int, ...]], billions: tuple[float, float]
) -> None:
    """On torch's meta device: no weights, no memory."""
    blind = {"depth": 0, "hidden_size": 16, "num_heads": 1, "out_hidden_size": 16}
    wanted = expected(Qwen2_5OmniThinkerConfig(vision_config=blind, **changed))
    found = {official(name): shape for name, shape in wanted.items()}
    assert {name: found.get(name) for name in shapes} == shapes
    assert all(ours(official(name)) == name for name in wanted)
    assert not any("visual" in name for name in found)
    low, high = billions
    assert low < sum(int(np.prod(shape)) for shape in found.values()) / 1e9 < high
    for name in ("talker.model.norm.weight", "token2wav.x", "thinker.visual.patch_embed.proj.weight"):
        assert ours(name) is None


def test_from_a_sound_file_to_reranked_predictions(
    cli: Cli, folder: Path, recordings: Path, judge: QwenOmniVerifier, tmp_path: Path
) -> None:
    rows = [
        Prediction("1", "a dog barks", "v1", 12.0, np.array([[2, 5, 0.9], [11, 11.3, 0.8], [6, 8, 0.2]])),
        Prediction("2", "x", "v2", 6.5, np.array([[0, 6.5, 0.7], [1, 2, 0.69]])),
    ]
    counts = {"trainable": 7, "frozen": 11}
    meta = {"checkpoints": [{"sha256": "c"}], "parameters": counts, "audio_encoders": ["m2d"]}
    write_predictions(tmp_path / "p.jsonl", rows, meta | {"text_encoders": ["m2d"], "datasets": ["d"]})
    command = ["rerank", tmp_path / "p.jsonl", "--verifier", f"qwen2.5-omni:{folder}", "--audio", recordings]
    command += ["--cache", tmp_path / "cache", "--batch", 2, "--top-k", 2, "--json"]
    done = cli(*command, "--beta", 0.6, "--out", tmp_path / "r.jsonl")
    assert done.code == 0, done.err
    assert "loading tiny" in done.err
    told = json.loads(done.out)
    assert (told["asked"], told["prompt"], told["precision"]) == (4, prompt.VERSION, "fp32")
    after = read_predictions(tmp_path / "r.jsonl")
    for before, now in zip(rows, after, strict=True):
        kept = before.windows[2:]
        asked = [Candidate(now.qid, now.query, now.vid, 0, *w[:2]) for w in before.windows[:2].tolist()]
        mixed = [
            (*w[:2], 0.4 * w[2] + 0.6 * p)
            for w, p in zip(before.windows[:2].tolist(), judge.score(asked), strict=True)
        ]
        mixed.sort(key=lambda w: -w[2])
        low = [(s, e, min(p, mixed[-1][2])) for s, e, p in kept.tolist()]
        np.testing.assert_allclose(now.windows, [*mixed, *low], rtol=0, atol=1e-5)
    sha = told["weights_sha256"]
    assert (
        after.meta["verifier"] == f"qwen2.5-omni (tiny, weights {sha[:12]}, prompt 1, fp32, beta 0.6, top 2)"
    )
    assert after.meta["rerank"]["weights_sha256"] == sha
    assert after.meta["parameters"] == {"trainable": 7, "frozen": 11 + judge.parameters}
    # with all answers in the cache the network is not even loaded
    again = cli(*command, "--beta", 0.6, "--out", tmp_path / "s.jsonl")
    assert json.loads(again.out)["asked"] == 0
    assert "loading" not in again.err
    assert (tmp_path / "s.jsonl").read_bytes() == (tmp_path / "r.jsonl").read_bytes()
