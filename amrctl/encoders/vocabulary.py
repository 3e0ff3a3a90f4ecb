"""Tokenizers of text encoders whose weights come without one: from beside the weights, else the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from amrctl.errors import FeatureError

JOINT = "tokenizer.json"


def load_tokenizer(kind: str, beside: Path, folder: str, hub: str, files: tuple[str, ...]) -> Any:
    """The tokenizer of transformers' class `kind`.

    Looked for in the folder `beside`, then in `beside / folder`: `tokenizer.json`, or all of `files`;
    then under `hub`, where transformers fetches and keeps it. Raises `FeatureError` that says which
    files to put where.
    """
    import transformers

    places = (beside, beside / folder)
    there = [p for p in places if (p / JOINT).is_file() or all((p / file).is_file() for file in files)]
    place = there[0] if there else _fetched(hub, beside / folder, files)
    try:
        # Told a name, the class makes an empty tokenizer where there are no files; so it is told a folder.
        return getattr(transformers, kind).from_pretrained(str(place), local_files_only=True)
    except Exception as error:  # broken files raise several kinds
        raise FeatureError(f"{place}: the tokenizer cannot be read ({_line(error)})") from None


def _fetched(hub: str, instead: Path, files: tuple[str, ...]) -> Path:
    from transformers.utils.hub import cached_file

    # It tells of each attempt; the last one is told below.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Path(cached_file(hub, JOINT) or "").parent
    except Exception as error:  # no network, no such name: each has a kind of its own
        raise FeatureError(
            f"{JOINT} (or {' and '.join(files)}) of {hub} is not in {instead}, where it may be put, "
            f"and the Hub does not give it ({_line(error)})"
        ) from None
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
