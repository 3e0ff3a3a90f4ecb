"""Official weights: reading a file without running code in it, and placing every tensor by name.

Nothing here knows an encoder; each brings the table of its own names.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amrctl import provenance
from amrctl.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor, nn

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)


def local(checkpoint: str | None) -> Path:
    """The path that the part of a spelling after the colon is; no shell expands `~` there."""
    return Path(checkpoint or "").expanduser()


def weight_files(folder: Path) -> list[Path]:
    """The files with weights of a folder in the Hub's layout, sorted. Raises `FeatureError`: none."""
    for pattern in WEIGHT_FILES:
        if found := sorted(folder.glob(pattern)):
            return found
    raise FeatureError(f"{folder} holds no weights ({WEIGHT_FILES[0]} or {WEIGHT_FILES[2]})")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file with weights, or of those in a folder.

    Of several files: of the lines `<sha256>  <name>`, as sha256sum writes them.
    """
    files = weight_files(path) if path.is_dir() else [path]
    try:
        if len(files) == 1:
            return provenance.sha256(files[0])
        lines = "".join(f"{provenance.sha256(file)}  {file.name}\n" for file in files)
    except OSError as error:
        raise FeatureError(f"{path}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(lines.encode()).hexdigest()


def read_tensors(path: Path, *unwrap: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or torch file by name, on the CPU.

    Of a torch file that holds dictionaries, the first of the keys `unwrap` that is there is taken; what
    is no tensor is left out. Only tensors and plain values are read, code in the file never runs.

    Raises `FeatureError` naming file and reason.
    """
    if path.is_dir():
        raise FeatureError(f"{path} is a folder; name the file with the weights")
    if not path.is_file():
        raise FeatureError(f"{path}: no such file with weights")
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings, beside the tensors
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise half a dozen kinds, none of them for a bug of ours
        raise FeatureError(f"{path}: not a readable file with weights ({_reason(error)})") from None
    for key in unwrap:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    if not isinstance(held, Mapping):
        raise FeatureError(f"{path}: holds a {type(held).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise FeatureError(f"{path}: holds no tensors")
    return tensors


def _reason(error: Exception) -> str:
    """The one line that matters of what torch and safetensors have to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else ""
    )
    if " " not in told:  # the number of a byte that is none of its commands, or nothing
        return "neither torch nor safetensors wrote it, or it is cut off"
    return told.removeprefix("WeightsUnpickler error: ")[:160].rstrip(". ")


def place(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    table: Mapping[str, str | tuple[str, ...]],
    *,
    where: str,
    ignore: Callable[[str], bool] = lambda key: False,
    computed: Collection[str] = (),
) -> None:
    """Copy official tensors into the parameters and buffers of `module`, all or none of them.

    `table`: official name → name in `module`, or names among which the tensor is cut evenly along
    its first dimension, in that order. `ignore`: official names that may be there and are not used.
    `computed`: names in `module` that it fills by itself. `where`: what messages begin with.

    Raises `FeatureError` with the official names that are missing, unknown or of another shape, and
    `ValueError` when the table leaves a parameter or a stored buffer of `module` as it was.
    """
    import torch

    inside: dict[str, Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    targets = {key: (names,) if isinstance(names, str) else names for key, names in table.items()}
    named = {name for names in targets.values() for name in names}
    filled = {id(inside[name]) for name in named if name in inside}
    wrong = sorted(named - inside.keys())
    left = [
        name
        for name in module.state_dict()
        if name in inside and id(inside[name]) not in filled and name not in computed
    ]
    if wrong or left:
        raise ValueError(f"the table of {where}: not in the module: {wrong}; not filled: {left}")

    shapes = []
    for key, names in targets.items():
        if key in tensors:
            has, wants = tuple(tensors[key].shape), _joint_shape(inside, names)
            if has != wants:
                shapes.append(f"'{key}' is {has}, not {wants}")
    missing = [key for key in targets if key not in tensors]
    extra = [key for key in tensors if key not in targets and not ignore(key)]
    faults = [
        *_several("missing", [f"'{key}'" for key in missing]),
        *_several("unknown", [f"'{key}'" for key in extra]),
        *_several("of another shape", shapes),
    ]
    if faults:
        raise FeatureError(f"{where}: not the weights that are expected; {'; '.join(faults)}")
    with torch.no_grad():
        for key, names in targets.items():
            pieces = tensors[key].chunk(len(names)) if len(names) > 1 else (tensors[key],)
            for name, piece in zip(names, pieces, strict=True):
                inside[name].copy_(piece)


def _joint_shape(inside: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[int, ...]:
    first = tuple(inside[names[0]].shape)
    if any(tuple(inside[name].shape) != first for name in names):
        raise ValueError(f"{names} are of several shapes, a tensor cannot be cut among them evenly")
    return first if len(names) == 1 else (first[0] * len(names), *first[1:])


def _several(what: str, found: list[str], show: int = 3) -> list[str]:
    if not found:
        return []
    more = f" and {len(found) - show:,} more" if len(found) > show else ""
    return [f"{what}: {', '.join(found[:show])}{more}"]
