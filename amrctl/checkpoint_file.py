"""The file of a checkpoint, whatever network it is of: safetensors with our metadata."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amrctl import provenance
from amrctl.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1  # of the metadata
KEY = "amrctl"  # of the metadata in the file


def write_file(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, overwrite: bool = True
) -> None:
    """Write tensors and metadata (JSON values) through a temporary file. Raises `OutputError`."""
    import safetensors.torch

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
    with provenance.writing(path, overwrite=overwrite) as temporary:
        safetensors.torch.save_file(held, str(temporary), metadata={KEY: text})


def read_metadata(path: Path | str, needed: Collection[str] = ("recipe",)) -> dict[str, Any]:
    """The metadata of one of our checkpoints, without its tensors; it has the keys `needed`.

    Raises `CheckpointError`.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safetensors.safe_open(str(path), framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    if text is None:
        raise CheckpointError(
            f"{path} has no amrctl metadata; amrctl reads its own checkpoints and official .ckpt files"
        )
    try:
        found = json.loads(text)
        version = found["format"]
        damaged = version == FORMAT and any(key not in found for key in needed)
    except (ValueError, KeyError, TypeError):
        version, damaged = None, True
    if damaged:
        raise CheckpointError(f"{path}: its amrctl metadata is damaged")
    if version != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version}, this program reads {FORMAT}")
    return dict(found)


def task_of(path: Path | str) -> str:
    """The task of the recipe that a checkpoint was trained with: `moments` or `retrieval`.

    Official files are of detectors. Raises `CheckpointError`.
    """
    path = Path(path)
    if path.suffix in (".ckpt", ".pth", ".pt"):
        return "moments"
    recipe = read_metadata(path)["recipe"]
    return str(recipe.get("task", "moments")) if isinstance(recipe, dict) else "moments"
