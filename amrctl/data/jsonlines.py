"""Reading JSON lines with faults that name file and line: shared by manifests and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amrctl.errors import AmrctlError


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is not a finite number")
    return value


DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float)


def read_text(path: Path, fault: type[AmrctlError], what: str) -> str:
    """The file as text (UTF-8, a byte order mark is dropped); `what` names the expected format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise fault(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fault(f"{path}:{line}: not UTF-8 text; {what} was expected") from None


def explain(error: Exception) -> str:
    """Why a piece of text is not JSON, on one line."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "not valid JSON (nested too deeply)"
    return f"not valid JSON ({error})"


def objects(path: Path, text: str, fault: type[AmrctlError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line, object)` of every line that is not blank. Raises `fault` naming file and line."""
    # split on "\n" alone: str.splitlines would also cut at U+2028 inside a sentence
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise fault(f"{path}:{number}: {explain(error)}") from None
        if not isinstance(value, dict):
            raise fault(f"{path}:{number}: one JSON object per line is expected, this is {kind(value)}")
        yield number, value


def parse(text: str) -> Any:
    """The JSON value of `text`, or None where it is none."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def kind(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return "a number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def is_number(value: Any) -> bool:
    """A JSON number (not a boolean) that fits a float."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and -(2**1000) < value < 2**1000


def is_text(value: Any) -> bool:
    """Text that is not blank, without NUL, and can be written as UTF-8 (no lone surrogates)."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and encodable(value)


def encodable(value: Any) -> bool:
    """Whether all text inside a JSON value can be written as UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, dict):
        return all(encodable(k) and encodable(v) for k, v in value.items())
    if isinstance(value, list):
        return all(encodable(v) for v in value)
    return True


def read_qid(record: dict[str, Any]) -> tuple[str, bool] | None:
    """`(qid as text, was it a whole number)` of a record; None when it is neither text nor integer."""
    qid = record.get("qid")
    if type(qid) is int:
        return str(qid), True
    return (qid, False) if isinstance(qid, str) and is_text(qid) else None
