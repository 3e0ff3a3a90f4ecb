"""Networks in the Hub's layout: a local folder, or a hub name that transformers fetches.

`from_pretrained` fills what a file lacks with random numbers and only warns. Here that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amrctl.encoders.frozen import require
from amrctl.encoders.weights import local, weight_files
from amrctl.errors import FeatureError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def folder_of(checkpoint: str, *, encoder: str, extra: Sequence[str] = (), how: str | None = None) -> Path:
    """The local folder with `config.json` and weights that `checkpoint` means.

    A folder is itself. Anything else is a hub name: transformers finds its files in its cache or
    downloads them (`extra`: further files, where the hub has them). `how`: the way to name a folder, if it
    is not the encoder's spelling. Raises `FeatureError`.
    """
    require("transformers", encoder)
    path = local(checkpoint)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FeatureError(f"{encoder}: {path} has no config.json; name a folder in the Hub's layout")
        weight_files(path)
        return path
    layout = f"write {how or f'{encoder}:FOLDER'}, a folder with config.json and model.safetensors"
    if path.exists():
        raise FeatureError(f"{encoder}: {path} is a file; {layout}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", checkpoint):
        raise FeatureError(f"{encoder}: there is no folder {path}; {layout}")
    try:
        return fetched(checkpoint, ("config.json",), ("model.safetensors", "pytorch_model.bin"), extra=extra)
    except FeatureError as error:
        raise FeatureError(
            f"{encoder}: there is no folder {checkpoint}, and {error}; download the weights elsewhere and "
            f"{layout}"
        ) from None


def name_of(checkpoint: str) -> str:
    """What a feature file calls weights: the name of their file or folder, wherever it lies, or the Hub's."""
    path = local(checkpoint)
    return path.resolve().name if path.exists() else checkpoint


def fetched(hub: str, *needed: Sequence[str], extra: Sequence[str] = ()) -> Path:
    """The local folder with files of the hub name `hub`, which transformers has or downloads.

    Of each of `needed` the first that is there; of `extra` what is there. Where the Hub does not answer
    at the first try, only what was downloaded before counts. Raises `FeatureError`.
    """
    from huggingface_hub import constants
    from transformers.utils.hub import cached_file

    offline = constants.HF_HUB_OFFLINE or not _answers()
    lenient = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "local_files_only": offline,
    }
    folder = Path()
    with quietly():
        for names in needed:
            found = None
            try:
                for name in names:
                    found = found or cached_file(hub, name, **lenient)
            except (OSError, ValueError) as error:  # no such name, no leave to read it
                raise FeatureError(f"the Hub does not give {hub} ({short(error, 100)})") from None
            if found is None:
                if offline:
                    why = f"the Hub does not answer ({hub}/{names[0]} was not downloaded before)"
                else:
                    why = f"the Hub does not give {hub}/{names[0]}"
                raise FeatureError(why)
            folder = Path(found).parent
        for name in extra:
            with contextlib.suppress(OSError, ValueError):
                cached_file(hub, name, **lenient)
    return folder


@functools.cache
def _answers() -> bool:
    """Whether the Hub can be reached: asked once, since its client asks six times, and for each file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # each way of having no network has a kind of its own
        return False
    return True


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

    with quietly():
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
            raise FeatureError(f"{encoder}: {folder} cannot be loaded ({short(error)})") from None
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
    faults += [short(fault) for fault in told.get("error_msgs") or ()]
    if faults:
        raise FeatureError(f"{encoder}: {folder} does not hold its weights; {'; '.join(faults)}")
    return network


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers and the Hub's client print: what matters of it is an error here."""
    from transformers.utils import logging as untyped

    theirs: Any = untyped
    client = logging.getLogger("huggingface_hub")
    level, bars, clients = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), client.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        client.setLevel(clients)


def short(error: object, width: int = 160) -> str:
    """What an error says, in one line that is not long."""
    return textwrap.shorten(str(error), width, placeholder="...").rstrip(".") or type(error).__name__
