"""`state.pt`: the commit point of a run.

It is replaced atomically after everything else of an epoch is on disk. Whatever a killed process
wrote after the last commit is written again, with the same bits, when the run goes on: all
randomness of an epoch comes from (seed, epoch).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amrctl import provenance
from amrctl.errors import CheckpointError

FORMAT = "amrctl-state"
VERSION = 1


@dataclass
class State:
    """Where a run stands after `epoch` finished epochs.

    `fingerprint`: what the run was made of (plain JSON types). `weights`, `average`, `optimizer`:
    raw weights, their moving average (None without EMA) and the optimiser's state; all None before
    the first epoch ended. `best`: metric → value and epoch (from 1) of the best validation.
    `stale`: validations since the primary metric rose. `history`: the lines of `log.jsonl`.
    """

    fingerprint: dict[str, Any]
    epoch: int = 0
    finished: bool = False
    weights: dict[str, Tensor] | None = None
    average: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    stale: int = 0
    history: list[str] = field(default_factory=list)


def write(path: Path, state: State) -> None:
    """Replace `state.pt`; it holds tensors and plain containers only."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": json.dumps(state.fingerprint, sort_keys=True),
        **{key: value for key, value in vars(state).items() if key != "fingerprint"},
    }
    # an open file: from a path torch takes the name of the archive inside
    with provenance.writing(path) as temporary, open(temporary, "wb") as stream:
        torch.save(content, stream)


def read(path: Path, *, tensors: bool = True) -> State:
    """Read `state.pt` (on the CPU); without `tensors`, only what is around them, which is quick.

    Raises `CheckpointError` when it is not one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not tensors)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise CheckpointError(
            f"{path} cannot be read; choose another --out, or start again with --overwrite"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CheckpointError(f"{path} is not the state of an amrctl run of version {VERSION}")
    content = {key: value for key, value in content.items() if key not in ("format", "version")}
    content["fingerprint"] = json.loads(content["fingerprint"])
    if not tensors:
        content |= {"weights": None, "average": None, "optimizer": None}
    return State(**content)


def mix(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of one epoch's random draws: 63 bits that depend on all numbers. `rank`: of several
    processes, each of which draws for itself."""
    text = f"amrctl {seed} {epoch}" + (f" {rank}" if rank else "")
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Name what differs between two fingerprints, one phrase each; empty when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), _join(path, key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, _join(path, _name(a, i)))
        ]
    return [] if old == new else [f"{path}: {_short(old)} there, {_short(new)} now"]


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _name(item: Any, position: int) -> object:
    return item.get("kind", position) if isinstance(item, dict) else position


def _short(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, str) and len(value) == 64:
        return f"content {value[:8]}"
    return text if len(text) <= 60 else text[:57] + "..."
