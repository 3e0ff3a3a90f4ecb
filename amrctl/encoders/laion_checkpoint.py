"""LAION-CLAP's weights: a folder in the Hub's layout, a name on the Hub, or an original `.pt` file.

A folder has `config.json`, `preprocessor_config.json` (its values count: those of transformers' class are
of other weights), the weights, and for sentences the tokenizer. An original file has only weights: the
sizes are read off their shapes, the front end is that of the published training, and the names are
mapped as `original_table` says. Of either, every name must be known and none may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amrctl.encoders.htsat import Table, compare_positions, computed, htsat_table, unused
from amrctl.encoders.hub import TOKENIZER, folder_of, name_of, read_config
from amrctl.encoders.weights import local, place, read_tensors, sha256_of, weight_files
from amrctl.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

PREPROCESSOR, ENCODER = "preprocessor_config.json", "audio_model.audio_encoder."
FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
# Numbers that the text network fills by itself, and older files store.
_COUNTS = ("embeddings.position_ids", "embeddings.token_type_ids")
# What an original file holds beside the network: its front end, and heads that were trained with it only.
_LEFT = re.compile(
    r"audio_branch\.(spectrogram_extractor\.stft\.conv_(real|imag)\.weight|logmel_extractor\.melW)"
    r"|(audio|text)_transform\.sequential\.\d+\.(weight|bias)"
    r"|text_branch\.embeddings\.(position_ids|token_type_ids)"
)


class Front(BaseModel):
    """The front end, as `preprocessor_config.json` writes it; the rest of that file is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling_rate: int = Field(48_000, gt=0)
    fft_window_size: int = Field(1024, gt=0)
    hop_length: int = Field(480, gt=0)
    feature_size: int = Field(64, gt=0)
    frequency_min: float = Field(ge=0)
    frequency_max: float = Field(14_000, gt=0)
    max_length_s: int = Field(10, gt=0)
    top_db: None = None
    truncation: Literal["rand_trunc", "fusion"]
    padding: Literal["repeatpad", "repeat", "pad"] = "repeatpad"

    @property
    def samples(self) -> int:
        """Samples that the network hears at once."""
        return self.max_length_s * self.sampling_rate

    @property
    def frames(self) -> int:
        """Spectra of so many samples."""
        return self.samples // self.hop_length + 1


@dataclass(frozen=True, slots=True)
class Official:
    """`model`: transformers' `ClapModel`, filled. `folder`: where a tokenizer may lie beside the weights."""

    model: Any
    front: Front
    folder: Path
    name: str
    sha256: str


def read_official(checkpoint: str, encoder: str) -> Official:
    """Read what `checkpoint` names. Raises `FeatureError`: nothing there, files or tensors at fault."""
    path = local(checkpoint)
    if path.is_file() or path.suffix in FILES:
        model, front = _from_file(path)
        return Official(model, front, path.parent, path.name, sha256_of(path))
    folder = folder_of(checkpoint, encoder=encoder, extra=(PREPROCESSOR, *TOKENIZER))
    model, front = _from_folder(folder, encoder)
    return Official(model, front, folder, name_of(checkpoint), sha256_of(folder))


def _from_folder(folder: Path, encoder: str) -> tuple[Any, Front]:
    from transformers import ClapConfig

    given = read_config(folder, encoder=encoder, model_type="clap")
    try:
        config: Any = ClapConfig.from_dict(given)
    except Exception as error:  # transformers' checks have several kinds
        raise FeatureError(f"{folder / 'config.json'}: {' '.join(str(error).split())[:160]}") from None
    front = _front(folder / PREPROCESSOR)
    if front.truncation == "fusion" and not config.audio_config.enable_fusion:
        raise FeatureError(f"{folder}: the front end is that of a fused model, the network is not one")
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= read_tensors(file)
    return _filled(config, tensors, None, str(folder)), front


def _from_file(path: Path) -> tuple[Any, Front]:
    import torch

    try:
        with torch.serialization.safe_globals(_numbers()):
            tensors = read_tensors(path, "state_dict", "model")
    except FeatureError as error:
        if not path.is_file():
            raise
        raise FeatureError(
            f"{error}; what holds more than tensors and numbers is not read, "
            "take the same weights from the Hub (laion/clap-htsat-unfused)"
        ) from None
    config = _config_of(tensors, path)
    fused = config.audio_config.enable_fusion
    front = Front.model_validate({"frequency_min": 50, "truncation": "fusion" if fused else "rand_trunc"})
    return _filled(config, tensors, _prefix(tensors), str(path)), front


def _numbers() -> list[Any]:
    """What torch must know to read numpy's numbers, which original files hold as scores of training."""
    import numpy as np

    build = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before and since numpy 2
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [*((build, name) for name in names), np.dtype, *kinds]


def _front(path: Path) -> Front:
    try:
        return Front.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeatureError(f"{path}: missing; the folder must be as the Hub offers it") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        entry = ".".join(map(str, fault["loc"]))
        raise FeatureError(f"{path}: {entry + ': ' if entry else ''}{fault['msg']}") from None


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    """Original files were written from a network that was spread over devices."""
    return "module." if any(key.startswith("module.") for key in tensors) else ""


def _config_of(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Sizes of the networks of an original file, from the shapes of its tensors."""
    from transformers import ClapConfig

    start = _prefix(tensors)

    def shape(key: str) -> tuple[int, ...]:
        if start + key not in tensors:
            raise FeatureError(f"{path}: not the weights that are expected; missing: '{start + key}'")
        return tuple(tensors[start + key].shape)

    def count(pattern: str) -> int:
        return len({found[1] for key in tensors if (found := re.match(re.escape(start) + pattern, key))})

    stages = range(count(r"audio_branch\.layers\.(\d+)\."))
    embed = shape("audio_branch.patch_embed.proj.weight")[0]
    words, width = shape("text_branch.embeddings.word_embeddings.weight")
    bias = "blocks.0.attn.relative_position_bias_table"
    fused = f"{start}audio_branch.patch_embed.mel_conv2d.weight" in tensors
    return ClapConfig(
        projection_dim=shape("audio_projection.2.weight")[0],
        audio_config={
            "patch_embeds_hidden_size": embed,
            "hidden_size": embed * 8,
            "depths": [count(rf"audio_branch\.layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
            "num_attention_heads": [shape(f"audio_branch.layers.{stage}.{bias}")[1] for stage in stages],
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
        },
        text_config={
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": count(r"text_branch\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": shape("text_branch.encoder.layer.0.intermediate.dense.weight")[0],
            "max_position_embeddings": shape("text_branch.embeddings.position_embeddings.weight")[0],
            "layer_norm_eps": 1e-5,  # RoBERTa's, which the original builds
        },
    )


def original_table(model: Any, start: str) -> Table:
    """Names of an original file, which begin with `start`, to names in `model`, a `ClapModel`.

    `audio_branch.` is HTSAT (see `htsat_table`), `text_branch.` RoBERTa under transformers' own names;
    the two linear maps of each projection are called 0 and 2.
    """
    audio = model.config.audio_config
    table = htsat_table("audio_branch.", ENCODER, audio.depths, fused=audio.enable_fusion)
    for name in model.text_model.state_dict():
        if not name.endswith(_COUNTS):
            table[f"text_branch.{name}"] = f"text_model.{name}"
    for side in ("audio", "text"):
        for theirs, ours in (("0", "linear1"), ("2", "linear2")):
            for end in ("weight", "bias"):
                table[f"{side}_projection.{theirs}.{end}"] = f"{side}_projection.{ours}.{end}"
    table |= {name: name for name in ("logit_scale_a", "logit_scale_t")}
    return {start + key: name for key, name in table.items()}


def _filled(config: Any, tensors: Mapping[str, Tensor], start: str | None, where: str) -> Any:
    """A `ClapModel` with `tensors`, under transformers' names (`start` none) or original ones."""
    from transformers import ClapModel

    model = ClapModel(config)
    own = computed(model) | {name for name in model.state_dict() if name.endswith(_COUNTS)}
    if start is None:
        table: Table = {name: name for name in model.state_dict() if name not in own}
        place(model, tensors, table, where=where, ignore=lambda key: key in own, computed=own)
        compare_positions(model, tensors, ENCODER, ENCODER, where)
    else:
        branch = f"{start}audio_branch."

        def left(key: str) -> bool:
            return unused(branch, key) or _LEFT.fullmatch(key.removeprefix(start)) is not None

        place(model, tensors, original_table(model, start), where=where, ignore=left, computed=own)
        compare_positions(model, tensors, branch, ENCODER, where)
    return model
