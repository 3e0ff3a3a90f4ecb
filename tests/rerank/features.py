"""A small feature file in the documented layout, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def write_features(
    path: Path,
    audio: Arrays,
    text: Arrays,
    *,
    space: tuple[str | None, str | None] = (None, None),
    pooled: npt.NDArray[Any] | None = None,
    hop: float = 1.0,
    more_audio: str | None = None,
) -> Path:
    """One audio stream `a` and one text stream `t` (and a second audio stream `more_audio`)."""
    with h5py.File(str(path), "w") as file:
        file.attrs.update({"format": "amrctl-features", "version": 1, "complete": True})
        for side, name, arrays, where in (("audio", "a", audio, space[0]), ("text", "t", text, space[1])):
            for stream in (name, more_audio) if side == "audio" and more_audio else (name,):
                group = file.create_group(f"{side}/{stream}")
                group["rows"] = np.concatenate(list(arrays.values()))
                group["offsets"] = np.cumsum([0, *map(len, arrays.values())])
                group.create_dataset("ids", data=list(arrays), dtype=h5py.string_dtype())
                group.attrs["encoder"] = f"{stream}-encoder"
                if where:
                    group.attrs["space"] = where
                if side == "audio":
                    group.attrs["hop"] = group.attrs["window"] = hop
                elif pooled is not None:
                    group["pooled"] = pooled
    return path
