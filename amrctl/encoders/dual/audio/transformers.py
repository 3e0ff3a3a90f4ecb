"""An audio network of transformers as the audio side, all of it trained.

JKU, DCASE 2025, table 1 tries CLAP, Whisper and data2vec in PaSST's place; how they were pooled and what
of them trained is not said. Here CLAP gives its pooled output, the others the mean over time, and
everything trains. Each type brings its own front end, whose settings are stored in the checkpoint.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import torch
import transformers
from pydantic import Field
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from amrctl.encoders.dual.towers import AudioConfig, AudioTower, Memory
from amrctl.encoders.hub import folder_of, load_network, quietly, read_config, short
from amrctl.errors import FeatureError, near
from amrctl.registry import component

NAME = "transformers-audio"
FRONT = "preprocessor_config.json"


class _Type(NamedTuple):
    whole: str  # the class whose weights the folder holds
    part: str | None  # of it the audio network; None: itself
    network: Any  # the class of that part
    front: str
    options: dict[str, Any]  # for the front end


# `model_type` in config.json
TYPES = {
    "whisper": _Type("WhisperModel", "encoder", WhisperEncoder, "WhisperFeatureExtractor", {}),
    "clap": _Type(
        "ClapModel",
        "audio_model",
        transformers.ClapAudioModel,
        "ClapFeatureExtractor",
        {"truncation": "rand_trunc", "padding": "repeatpad"},
    ),
    "data2vec-audio": _Type(
        "Data2VecAudioModel", None, transformers.Data2VecAudioModel, "Wav2Vec2FeatureExtractor", {}
    ),
}


class Config(AudioConfig):
    """Which weights."""

    kind: Literal["transformers-audio"] = "transformers-audio"
    checkpoint: str = Field("openai/whisper-small", description="folder in the Hub's layout, or hub name")


@component("retrieval-audio", NAME, Config)
class TransformersAudio(AudioTower):
    """CLAP (without fusion), Whisper, data2vec; `segment` must not be longer than the network hears."""

    def __init__(self, config: Config, memory: Memory | None = None) -> None:
        super().__init__()
        self.config: Config = config
        if memory is None:
            folder = folder_of(
                config.checkpoint, encoder=NAME, extra=(FRONT,), how="--set model.audio.checkpoint=FOLDER"
            )
            self._type = _type(str(read_config(folder, encoder=NAME).get("model_type")), str(folder))
            whole = load_network(getattr(transformers, self._type.whole), folder, encoder=NAME)
            self.network: nn.Module = getattr(whole, self._type.part) if self._type.part else whole
            extractor = getattr(transformers, self._type.front)
            with quietly():
                try:
                    front = extractor.from_pretrained(str(folder), local_files_only=True)
                except Exception as error:  # transformers raises several kinds
                    raise FeatureError(f"{NAME}: {folder}: no {FRONT} ({short(error)})") from None
            self._kind = str(whole.config.model_type)
        else:
            self._kind = str(memory["kind"])
            self._type = _type(self._kind, "the checkpoint")
            settings = self._type.network.config_class.from_dict(memory["config"])
            self.network = self._type.network(settings)
            front = getattr(transformers, self._type.front).from_dict(memory["front"])
        told: Any = self.network.config
        if getattr(told, "enable_fusion", False):
            raise FeatureError(f"{NAME}: {config.checkpoint} is a CLAP with fusion; take one without")
        told.apply_spec_augment = False  # it draws from numpy's global random numbers
        self._front_settings = json.loads(front.to_json_string())
        self.front = _Front(front, self._type.options)
        self.sample_rate = int(front.sampling_rate)
        self.width = int(told.hidden_size)
        longest = getattr(front, "chunk_length", None) or getattr(front, "max_length_s", None)
        if longest is not None and config.segment > longest:
            raise FeatureError(
                f"model.audio.segment={config.segment:g}: {config.checkpoint} hears {longest:g} s at most"
            )

    def forward(self, spectra: Tensor) -> Tensor:
        """[N, T, F] to [N, W]."""
        if self._kind == "whisper":
            rows: Tensor = self.network(spectra.transpose(1, 2)).last_hidden_state.mean(1)
        elif self._kind == "clap":
            longer = torch.zeros(len(spectra), 1, dtype=torch.bool, device=spectra.device)
            rows = self.network(input_features=spectra[:, None], is_longer=longer).pooler_output
        else:
            rows = self.network(spectra.squeeze(-1)).last_hidden_state.mean(1)
        return rows

    def memory(self) -> Memory:
        """The network's and the front end's settings."""
        told: Any = self.network.config
        return {
            "kind": self._kind,
            "config": json.loads(told.to_json_string(use_diff=False)),
            "front": self._front_settings,
        }


class _Front(nn.Module):
    """[N, S] to [N, T, F] by the feature extractor of the network; of raw samples [N, S, 1]."""

    def __init__(self, extractor: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self._extractor, self._options = extractor, options

    def forward(self, samples: Tensor) -> Tensor:
        given = self._extractor(
            [row.numpy() for row in samples.cpu()],
            sampling_rate=self._extractor.sampling_rate,
            return_tensors="pt",
            **self._options,
        )
        made: Tensor = given["input_features"] if "input_features" in given else given["input_values"]
        if made.ndim == 2:
            return made[..., None].to(samples)
        if made.ndim == 4:  # CLAP: one channel
            return made[:, 0].to(samples)
        return made.transpose(1, 2).to(samples)  # Whisper: bands first


def _type(model_type: str, where: str) -> _Type:
    if model_type not in TYPES:
        raise FeatureError(
            f"{NAME}: {where} holds a network of type '{model_type}'{near(model_type, list(TYPES))}"
        )
    return TYPES[model_type]
