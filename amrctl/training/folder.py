"""The folder of a run: kept from a second process, and what stands in it from before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amrctl.errors import CheckpointError, OutputError
from amrctl.run_folder import RunFolder
from amrctl.training import state


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a second process out while this one trains here; a kill lets go.

    Raises `OutputError` when another process holds it or the folder cannot be made. Left-overs
    of a killed writer are removed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, path)
        for left in path.iterdir():
            if _left_over(left.name):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _left_over(name: str) -> bool:
    """Whether a file is what a killed writer leaves (see `provenance.writing`)."""
    return name.startswith(".") and name.endswith(".tmp")


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: two processes in one folder are then the user's care
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another process is training in {path}; choose another --out") from None


def find_state(folder: RunFolder, fingerprint: Mapping[str, Any], overwrite: bool) -> state.State | None:
    """Where the run to go on from stands (without its tensors), None to start. Changes nothing.

    Raises `OutputError` when the folder holds another run, or something else, and `overwrite` is
    false. With `overwrite`, an unfinished run of the same making still goes on (its end is the
    same to the bit) and a finished one starts again.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise OutputError(f"{folder.path} is a file; --out needs a folder")
    if not folder.state.is_file():
        known = {path.name for path in folder.files()}
        others = [p.name for p in folder.path.glob("*") if p.name not in known and not _left_over(p.name)]
        if others and not overwrite:
            raise OutputError(
                f"{folder.path} exists and is not a run folder (it holds {others[0]}); choose another --out"
            )
        return None
    if overwrite:
        try:
            found = state.read(folder.state, tensors=False)
        except CheckpointError:
            return None
        same = not state.differences(found.fingerprint, dict(fingerprint))
        return found if same and not found.finished else None
    found = state.read(folder.state, tensors=False)
    differing = state.differences(found.fingerprint, dict(fingerprint))
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise OutputError(
            f"{folder.path} holds a different run ({'; '.join(differing[:3])}{more}); "
            "choose another --out or add --overwrite"
        )
    return found
