"""Qwen2.5-Omni's files: which are needed, whether their tensors fit, and the network without eyes.

The official repositories hold the thinker (hearing and text), the talker and the vocoder; copies with
the thinker alone are read as well. Facts on files and names: the model's public repository and
transformers' own conversion of its names. Weights are safetensors; every name and shape is compared
with the network from the files' headers before anything is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amrctl.encoders.frozen import require
from amrctl.encoders.hub import fetched, quietly, read_config, short
from amrctl.encoders.weights import local, weight_files
from amrctl.errors import FeatureError
from amrctl.progress import SILENT, Reporter

NAME = "qwen2.5-omni"
DEFAULT = "Qwen/Qwen2.5-Omni-7B"
INDEX = "model.safetensors.index.json"
CONFIG, FRONT = "config.json", "preprocessor_config.json"
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
EXTRA = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Ids that transformers' class has no default for, as in the official files; no picture is ever shown.
_IDS = {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
# The smallest part for pictures that the class can be built with; it is taken off again.
_BLIND = {"depth": 0, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16, "out_hidden_size": 16}
_EYES = "model.visual."


def folder_of(weights: str, report: Reporter = SILENT) -> Path:
    """The local folder that `weights` means: itself, or that of a hub name, which is downloaded.

    Raises `FeatureError` naming every file that is missing.
    """
    require("transformers", NAME)
    path = local(weights)
    if path.is_dir():
        return _complete(path)
    layout = f"write {NAME}:FOLDER, a folder with {CONFIG}, {FRONT}, tokenizer and safetensors files"
    if path.exists():
        raise FeatureError(f"{NAME}: {path} is a file; {layout}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", weights):
        raise FeatureError(f"{NAME}: there is no folder {path}; {layout}")
    report.note(f"{NAME}: {weights} is taken from the Hub's cache, or downloaded into it")
    try:
        folder = fetched(
            weights,
            (CONFIG,),
            (FRONT,),
            TOKENIZER[:2],
            ("model.safetensors", INDEX),
            extra=(*TOKENIZER, *EXTRA),
        )
        for shard in _shards(folder):
            fetched(weights, (shard,))
    except FeatureError as error:
        raise FeatureError(
            f"{NAME}: there is no folder {weights}, and {error}; download the weights elsewhere and {layout}"
        ) from None
    return _complete(folder)


def _complete(folder: Path) -> Path:
    here = {name: (folder / name).is_file() for name in (CONFIG, FRONT, *TOKENIZER)}
    lacking = [name for name in (CONFIG, FRONT) if not here[name]]
    if not (here["tokenizer.json"] or (here["vocab.json"] and here["merges.txt"])):
        lacking.append("tokenizer.json (or vocab.json and merges.txt)")
    lacking += [name for name in _shards(folder) if not (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")) and not lacking:
        lacking.append("weights (model.safetensors, or model-*-of-*.safetensors)")
    if lacking:
        raise FeatureError(f"{NAME}: {folder} lacks {', '.join(lacking)}; copy the whole repository there")
    return folder


def _shards(folder: Path) -> list[str]:
    """The files that the folder's index names; none where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FeatureError(f"{NAME}: {path} is not an index of safetensors files") from None
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise FeatureError(f"{NAME}: {path} names files outside its folder")
    return names


def config_of(folder: Path) -> Any:
    """The thinker's `Qwen2_5OmniThinkerConfig`, without a part for pictures. Raises `FeatureError`."""
    from transformers import Qwen2_5OmniThinkerConfig

    whole = read_config(folder, encoder=NAME)
    kind, told = whole.get("model_type"), whole
    if kind == "qwen2_5_omni":
        told = whole.get("thinker_config") or {}
    elif kind != "qwen2_5_omni_thinker":
        raise FeatureError(
            f"{NAME}: {folder / CONFIG} is of model_type {json.dumps(kind)}, not qwen2_5_omni "
            "(or qwen2_5_omni_thinker)"
        )
    if not isinstance(told, dict) or not all(
        isinstance(told.get(k), dict) for k in ("audio_config", "text_config")
    ):
        raise FeatureError(f"{NAME}: {folder / CONFIG} has no thinker with audio_config and text_config")
    kept = {k: v for k, v in told.items() if k not in ("vision_config", "model_type", "architectures")}
    try:
        with quietly():
            return Qwen2_5OmniThinkerConfig(**{**_IDS, **kept}, vision_config=dict(_BLIND))
    except Exception as error:  # its checks raise several kinds
        raise FeatureError(f"{NAME}: {folder / CONFIG} cannot be used ({short(error)})") from None


def check_tensors(folder: Path, config: Any) -> int:
    """Compare names and shapes in the files with the network's; the number of parameters it needs.

    Raises `FeatureError` with official names: missing, of another shape, unknown.
    """
    wanted = expected(config)
    found = _headers(folder)
    shapes = {ours(key): (key, shape) for key, shape in found.items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = [official(key) for key in wanted if key not in shapes and key not in tied]
    other = [
        f"'{shapes[key][0]}' is {shapes[key][1]}, not {shape}"
        for key, shape in wanted.items()
        if key in shapes and shapes[key][1] != shape
    ]
    extra = [key for name, (key, _) in shapes.items() if name is not None and name not in wanted]
    faults = [
        f"{what}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3:,} more" if len(keys) > 3 else "")
        for what, keys in (
            ("missing", [f"'{key}'" for key in missing]),
            ("unknown", [f"'{key}'" for key in extra]),
            ("of another shape", other),
        )
        if keys
    ]
    if faults:
        raise FeatureError(f"{NAME}: {folder} does not hold its weights; {'; '.join(faults)}")
    return sum(_size(shape) for key, shape in wanted.items() if key in shapes)


def expected(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's tensors, as transformers calls them; no memory is used."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    with quietly(), torch.device("meta"):
        network = Thinker(config)
    return {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.startswith(_EYES)}


def ours(official_name: str) -> str | None:
    """The network's name for a tensor of the files; None for what is not used (talker, eyes)."""
    if official_name.startswith(("talker.", "token2wav.")):
        return None
    name = official_name.removeprefix("thinker.")
    if re.match(r"(model\.)?visual\.", name):
        return None
    if name.startswith("audio_tower."):
        return f"model.{name}"
    return re.sub(r"^model\.(?!language_model\.|audio_tower\.)", "model.language_model.", name)


def official(name: str) -> str:
    """The name that the official files have for a tensor of the network."""
    return "thinker." + re.sub(r"^model\.(language_model|audio_tower)\.", _outer, name)


def _outer(found: re.Match[str]) -> str:
    return "model." if found[1] == "language_model" else "audio_tower."


def _headers(folder: Path) -> Mapping[str, tuple[int, ...]]:
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            raise FeatureError(f"{NAME}: {path} is not read; only safetensors weights are")
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    found[key] = tuple(opened.get_slice(key).get_shape())
        except Exception as error:  # the reader has its own kind
            raise FeatureError(
                f"{NAME}: {path} is not a readable safetensors file ({short(error)})"
            ) from None
    return found


def load(folder: Path, config: Any, dtype: Any) -> Any:
    """The network in `dtype`, on the CPU, in evaluation mode, frozen. Raises `FeatureError`."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration
    with quietly():
        try:
            network, told = thinker.from_pretrained(
                str(folder),
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the eyes; all else was compared
                dtype=dtype,
            )
        except Exception as error:  # transformers, torch and safetensors each raise their own
            raise FeatureError(f"{NAME}: {folder} cannot be loaded ({short(error)})") from None
    shapes = (str(entry[0]) for entry in told["mismatched_keys"])
    wrong = sorted(key for key in (*told["missing_keys"], *shapes) if "visual." not in key)
    if wrong:
        raise FeatureError(
            f"{NAME}: this version of transformers does not fill '{wrong[0]}' from {folder}; try another"
        )
    network.model.visual = None
    return network.eval().requires_grad_(False)


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
