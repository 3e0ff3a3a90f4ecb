"""Where a file came from, and how a file is written so that a kill leaves the old one or none."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amrctl import __version__
from amrctl.errors import OutputError


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def short(path: str) -> str:
    """A file's name with its folder's, as `castella/train.jsonl`: tells data sets apart in reports."""
    return "/".join(Path(path).parts[-2:])


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are already imported."""
    found = {"amrctl": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "h5py", "soundfile", "soxr", "transformers"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "unknown"))
    return found


def command_line() -> str:
    """The running command as a user would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
    """The current time, UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def origin() -> dict[str, Any]:
    """What goes into every file that we write: command, time, versions."""
    return {"command": command_line(), "created": now(), "versions": versions()}


def refuse_existing(path: Path | str, overwrite: bool) -> Path:
    """Return `path`; raise `OutputError` if it exists and must not be replaced."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; choose another --out or add --overwrite")
    return target


def _temporary(target: Path) -> Path:
    """A name beside `target`, whose folder is made. Raises `OutputError` when nothing can be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write {target}: the folder is read-only")
    _remove_leftovers(target)
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _remove_leftovers(target: Path) -> None:
    """Remove what writers of `target` that were killed left beside it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d{{1,9}})(\.old)?\.tmp")
    with os.scandir(target.parent) as entries:
        left = [(Path(e.path), int(m[1])) for e in entries if (m := pattern.fullmatch(e.name))]
    for path, writer in left:
        if writer == os.getpid() or _runs(writer):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this number is there; where that cannot be asked, it is."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours
        return True
    return True


@contextlib.contextmanager
def writing(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    The rename is atomic, so a kill leaves the old file or none; what it leaves beside it goes with the
    next writing of `path`. Permissions are those of any new file, whatever the body makes of them.
    Raises `OutputError` when `path` exists and `overwrite` is false, or when its folder cannot be made.
    """
    target = refuse_existing(path, overwrite)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; --out needs a file")
    temporary = _temporary(target)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # asking for the umask would change it for a moment
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """As `writing`, for a folder that appears whole or not at all.

    What it replaces is moved aside, then deleted: a kill leaves the old folder, the new one or none.
    A folder around the current or the home folder is refused.
    """
    target = refuse_existing(path, overwrite)
    if target.exists() and any(f.is_relative_to(target.resolve()) for f in (Path.cwd(), Path.home())):
        raise OutputError(f"{target} would be deleted with all that is in it; choose another --out")
    temporary = _temporary(target)
    aside = temporary.with_suffix(".old.tmp")
    for path in (temporary, aside):  # of an earlier process of this number
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            target.replace(aside)
        elif target.exists():
            target.unlink()
        try:
            temporary.replace(target)
        except OSError:
            if aside.is_dir():
                aside.replace(target)
            raise
    finally:
        for path in (temporary, aside):
            shutil.rmtree(path, ignore_errors=True)


def claim(path: Path, busy: str) -> int | None:
    """Keep other processes away: a record lock on the file `path`, as a descriptor that ends it when closed.

    None where the system has no such locks. Raises `OutputError` with the text `busy` when another
    process holds it, and when the file cannot be written.
    """
    if os.name != "posix":
        return None
    import fcntl

    try:
        held = os.open(path, os.O_WRONLY | os.O_CREAT)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    try:
        # a record lock, not flock: worker processes that outlive a killed parent must not hold it
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise OutputError(busy) from None
    return held


def write_text(path: Path | str, text: str, *, overwrite: bool = True) -> None:
    """Write UTF-8 text through `writing`."""
    with writing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, *, overwrite: bool = True) -> None:
    """Write indented JSON (NaN is refused) through `writing`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", overwrite=overwrite)


def number(value: float) -> int | float:
    """The shortest JSON spelling of a number: whole numbers without the `.0`."""
    return int(value) if float(value).is_integer() else float(value)
