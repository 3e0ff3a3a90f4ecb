"""A folder of Qwen2.5-Omni's own architecture, files and tokens at a tiny size, with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from amrctl.encoders.hub import quietly

VOCABULARY = 151_664
# The numbers that the official tokenizer has.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
FIRST_SPECIAL, YES, NO = 151_643, 9_454, 2_753
THINKER: dict[str, Any] = {
    "model_type": "qwen2_5_omni_thinker",
    "audio_config": {
        "model_type": "qwen2_5_omni_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 16,
        "output_dim": 32,
        "n_window": 100,
        "max_source_positions": 1500,
    },
    "text_config": {
        "model_type": "qwen2_5_omni_text",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "tie_word_embeddings": False,
    },
    "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
    | {"out_hidden_size": 32},
    "audio_token_index": 151_646,
    "audio_start_token_id": 151_647,
    "audio_end_token_id": 151_648,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
}
FRONT = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 300,
    "n_samples": 4_800_000,
    "nb_max_frames": 30_000,
    "padding_value": 0.0,
    "return_attention_mask": True,
    "padding_side": "left",
    "image_processor_type": "Qwen2VLImageProcessor",
}


def network(seed: int = 0) -> Any:
    """The thinker with weights that are large enough for answers to differ."""
    torch.manual_seed(seed)
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration
    with quietly():
        made = thinker(Qwen2_5OmniThinkerConfig(**{k: v for k, v in THINKER.items() if k != "model_type"}))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and ".visual." not in name:
                parameter.normal_(0, 0.3)
    return made.eval()


def official(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under the names of the official files."""
    renamed = {}
    for name, value in state.items():
        for ours, theirs in (
            ("model.language_model.", "model."),
            ("model.audio_tower.", "audio_tower."),
            ("model.visual.", "visual."),
            ("lm_head.", "lm_head."),
        ):
            if name.startswith(ours):
                renamed[prefix + theirs + name.removeprefix(ours)] = value.contiguous().clone()
                break
    return renamed


def tokenizer() -> Tokenizer:
    """Byte-level BPE with the official numbers of Yes, No and the special tokens."""
    base = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), range(256), strict=True))
    merges = [
        ("Y", "e"),
        ("Ye", "s"),
        ("N", "o"),
        ("Ġ", "Yes"),
        ("Ġ", "No"),
        ("n", "o"),
        ("t", "h"),
        ("th", "e"),
    ]
    vocabulary = base | {"Ye": 256, "Yes": YES, "No": NO, "ĠYes": 257, "ĠNo": 258, "no": 259}
    vocabulary |= {"th": 260, "the": 261}
    taken = set(vocabulary.values())
    vocabulary |= {f"~{i}": i for i in range(FIRST_SPECIAL) if i not in taken}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def write_folder(folder: Path, state: Mapping[str, Tensor], *, whole: bool = True, shards: int = 1) -> Path:
    """Config, weights, tokenizer and front end. `whole`: as the official repository, with a talker and
    a vocoder beside the thinker; else the thinker alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = official(state, "thinker." if whole else "")
    config: dict[str, Any] = {"architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"], **THINKER}
    if whole:
        config = {
            "architectures": ["Qwen2_5OmniModel"],
            "model_type": "qwen2_5_omni",
            "thinker_config": THINKER,
        }
        config |= {"talker_config": {"model_type": "qwen2_5_omni_talker"}}
        tensors |= {"talker.model.norm.weight": torch.ones(3), "token2wav.x.weight": torch.ones(2, 2)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(FRONT))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        )
    )
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(tensors)
    index: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder
