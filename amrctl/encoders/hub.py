"""Networks and tokenizers in the Hub's layout: a local folder, or a hub name that transformers fetches.

`from_pretrained` fills what a file lacks with random numbers and only warns. Here that is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amrctl.encoders.frozen import require
from amrctl.encoders.weights import weight_files
from amrctl.errors import FeatureError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def folder_of(checkpoint: str, *, encoder: str, extra: Sequence[str] = ()) -> Path:
    """The local folder with `config.json` and weights that `checkpoint` means.

    A folder is itself. Anything else is a hub name: transformers finds its files in its cache or
    downloads them (`extra`: further files, where the hub has them). Raises `FeatureError`.
    """
    require("transformers", encoder)
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FeatureError(f"{encoder}: {path} has no config.json; name a folder in the Hub's layout")
        weight_files(path)
        return path
    layout = f"write {encoder}:FOLDER, a folder with config.json and model.safetensors"
    if path.exists():
        raise FeatureError(f"{encoder}: {path} is a file; {layout}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", checkpoint):
        raise FeatureError(f"{encoder}: there is no folder {path}; {layout}")
    from transformers.utils.hub import cached_file

    lenient = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    with _quietly():
        try:
            config = cached_file(checkpoint, "config.json")
            weights: str | None = None
            for name in ("model.safetensors", "pytorch_model.bin"):
                weights = weights or cached_file(
                    checkpoint, name, _raise_exceptions_for_missing_entries=False
                )
            for name in extra:
                cached_file(checkpoint, name, **lenient)
        except (OSError, ValueError) as error:
            reason = textwrap.shorten(str(error), 100, placeholder="...").rstrip(".")
            raise FeatureError(
                f"{encoder}: there is no folder {checkpoint}, nor can the hub's files of that name be had "
                f"({reason}); download them elsewhere and {layout}"
            ) from None
    if config is None or weights is None:
        raise FeatureError(f"{encoder}: the hub's {checkpoint} has no config.json or no weights; {layout}")
    return Path(config).parent


def read_config(folder: Path, *, encoder: str, **expected: Any) -> dict[str, Any]:
    """The settings in `config.json`, whose `expected` entries are as given. Raises `FeatureError`."""
    path = folder / "config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FeatureError(f"{path}: not readable JSON") from None
    if not isinstance(told, dict):
        raise FeatureError(f"{path}: not readable JSON")
    for key, value in expected.items():
        if told.get(key) != value:
            raise FeatureError(
                f"{path} is not of {encoder}: {key} is {json.dumps(told.get(key))}, not {json.dumps(value)}"
            )
    return told


def load_network(model: Any, folder: Path, *, encoder: str, unused: str = r"(?!)", **options: Any) -> Any:
    """The transformers class `model` with the weights of `folder`, float32.

    What the network needs must be there in its shape, and what the file has beyond it may only be a
    head: a key that begins like a part of the network is an error, unless the pattern `unused` finds
    something in it. Raises `FeatureError` naming the keys.
    """
    import torch

    with _quietly():
        try:
            network, told = model.from_pretrained(
                str(folder),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
                dtype=torch.float32,
                **options,
            )
        except Exception as error:  # transformers, torch and safetensors each raise their own
            reason = textwrap.shorten(str(error), 160, placeholder="...")
            raise FeatureError(f"{encoder}: {folder} cannot be loaded ({reason})") from None
    parts = {name for name, _ in network.named_children()}
    prefix = f"{network.base_model_prefix}."
    extra = [
        key
        for key in sorted(told["unexpected_keys"])
        if key.removeprefix(prefix).partition(".")[0] in parts and not re.search(unused, key)
    ]
    missing = sorted(key for key in told["missing_keys"] if not re.search(unused, key))
    shapes = sorted(str(entry[0]) for entry in told["mismatched_keys"])
    faults = [
        f"{what}: '{keys[0]}'" + (f" and {len(keys) - 1:,} more" if len(keys) > 1 else "")
        for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if keys
    ]
    faults += [textwrap.shorten(str(fault), 160, placeholder="...") for fault in told.get("error_msgs") or ()]
    if faults:
        raise FeatureError(f"{encoder}: {folder} does not hold its weights; {'; '.join(faults)}")
    return network


def load_tokenizer(folder: Path, *, encoder: str, words: int) -> Any:
    """The byte-level tokenizer of `folder`, which knows `words` tokens.

    Raises `FeatureError` that says which files it needs: without them transformers would make one
    that knows no word.
    """
    from transformers import AutoTokenizer

    needs = "tokenizer.json, or vocab.json and merges.txt"
    files = [(folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "merges.txt")]
    if not files[0] and not (files[1] and files[2]):
        raise FeatureError(f"{encoder}: {folder} lacks the tokenizer's files; put {needs} there")
    with _quietly():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise many kinds
            reason = textwrap.shorten(str(error), 160, placeholder="...")
            raise FeatureError(f"{encoder}: the tokenizer in {folder} cannot be read ({reason})") from None
    if len(tokenizer) != words:
        raise FeatureError(
            f"{encoder}: the tokenizer in {folder} knows {len(tokenizer):,} tokens, the network {words:,}; "
            f"put the {needs} there that belong to the weights"
        )
    return tokenizer


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' warnings and bars: what matters of them is an error here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
