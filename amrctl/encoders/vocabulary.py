"""Tokenizers of text encoders: from beside the weights, else from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amrctl.encoders.hub import fetched, quietly, short
from amrctl.errors import FeatureError

JOINT = "tokenizer.json"
BYTE_LEVEL = ("vocab.json", "merges.txt")


def load_tokenizer(kind: str, places: Sequence[Path], files: Sequence[str], *, hub: str | None = None) -> Any:
    """The tokenizer of transformers' class `kind`.

    Looked for in the folders `places`: `tokenizer.json`, or all of `files`; then under the name `hub`, if
    one is given. Raises `FeatureError` that says which files to put where.
    """
    import transformers

    there = [p for p in places if (p / JOINT).is_file() or all((p / file).is_file() for file in files)]
    place = there[0] if there else _fetched(hub, places[-1], f"{JOINT}, or {' and '.join(files)}")
    # Told a name, or a folder without files, the class makes a tokenizer that knows no word.
    with quietly():
        try:
            return getattr(transformers, kind).from_pretrained(str(place), local_files_only=True)
        except Exception as error:  # broken files raise several kinds
            raise FeatureError(f"the tokenizer in {place} cannot be read ({short(error)})") from None


def _fetched(hub: str | None, place: Path, files: str) -> Path:
    if hub is None:
        raise FeatureError(f"{place} lacks the tokenizer's files; put {files} there")
    try:
        return fetched(hub, (JOINT,))
    except FeatureError as error:
        raise FeatureError(f"{error}; put {files} of {hub} into {place}") from None
