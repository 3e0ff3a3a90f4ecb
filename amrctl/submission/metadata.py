"""The metadata file of a system: a template with placeholders, filled from what is known.

What nobody told and no provenance says is the word `unknown`; nothing is guessed.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from amrctl import __version__
from amrctl.errors import SubmissionError, near

UNKNOWN = "unknown"
SCORES = {
    "dev_r1_05": "MR-full-R1@0.5",
    "dev_r1_07": "MR-full-R1@0.7",
    "dev_map": "MR-full-mAP",
    "dev_map_05": "MR-full-mAP@0.5",
    "dev_map_075": "MR-full-mAP@0.75",
}


@dataclass(frozen=True)
class Told:
    """What only people know. `authors`: `lastname, firstname, email, affiliation` dicts, the first
    one corresponding; an empty list or string is unknown."""

    name: str = ""
    abbreviation: str = ""
    description: str = ""
    source_code: str = ""
    authors: Sequence[Mapping[str, Any]] = ()
    external_datasets: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if len(self.abbreviation) > 10:
            raise SubmissionError(
                f"abbreviation '{self.abbreviation}' has {len(self.abbreviation)} characters; at most 10"
            )


def parse_authors(lines: Sequence[str]) -> list[dict[str, Any]]:
    """`Last, First, email, affiliation` → author blocks; the first one is corresponding."""
    done: list[dict[str, Any]] = []
    for line in lines:
        parts = [part.strip() for part in line.split(",", 3)]
        if len(parts) != 4 or not all(parts) or "@" not in parts[2]:
            raise SubmissionError(f"author '{line}': write 'Last, First, email, affiliation'")
        entry: dict[str, Any] = dict(
            zip(("lastname", "firstname", "email", "affiliation"), parts, strict=True)
        )
        if not done:
            entry["corresponding"] = True
        done.append(entry)
    return done


def parse_datasets(lines: Sequence[str]) -> list[dict[str, str]]:
    """`Name, URL` (or only a name) → data set blocks."""
    done = []
    for line in lines:
        name, _, url = (part.strip() for part in line.partition(","))
        if not name:
            raise SubmissionError(f"external data set '{line}': write 'Name, URL'")
        done.append({"name": name, "url": url or UNKNOWN})
    return done


def read_scores(path: Path) -> dict[str, float]:
    """Placeholder → percent, from the metrics file of `evaluate`. Raises `SubmissionError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SubmissionError(f"cannot read the development scores {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SubmissionError(f"{path} is not JSON; give the metrics file of amrctl evaluate --out") from None
    brief = value.get("brief") if isinstance(value, dict) else None
    if not isinstance(brief, dict):
        raise SubmissionError(f"{path} has no 'brief' block; give the metrics file of amrctl evaluate --out")
    done: dict[str, float] = {}
    for key, name in SCORES.items():
        score = brief.get(name)
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 100:
            raise SubmissionError(f"{path}: 'brief' has no percentage '{name}'")
        done[key] = score
    return done


def facts(
    label: str, meta: Mapping[str, Any], told: Told, scores: Mapping[str, float] | None
) -> dict[str, Any]:
    """Every placeholder's value for one system; `meta` is the prediction file's provenance."""
    counts = meta.get("parameters")
    counts = counts if isinstance(counts, Mapping) else {}
    trainable, frozen = (
        counts[k] if type(counts.get(k)) is int else UNKNOWN for k in ("trainable", "frozen")
    )
    checkpoints = [c for c in meta.get("checkpoints") or () if isinstance(c, Mapping)]
    encoders = meta.get("audio_encoders") or [UNKNOWN]
    # a source without provenance leaves "unknown" among the encoders; where none did, a verifier
    # would have been told
    verifier = meta.get("verifier") or (UNKNOWN if UNKNOWN in encoders else "none")
    return {
        "label": label,
        "name": told.name or UNKNOWN,
        "abbreviation": told.abbreviation or UNKNOWN,
        "authors": [dict(a) for a in told.authors] or UNKNOWN,
        "description": told.description or UNKNOWN,
        "source_code": told.source_code or UNKNOWN,
        "external_datasets": [dict(d) for d in told.external_datasets] or UNKNOWN,
        "audio_encoders": meta.get("audio_encoders") or UNKNOWN,
        "text_encoders": meta.get("text_encoders") or UNKNOWN,
        "datasets": meta.get("datasets") or UNKNOWN,
        "recipes": list(dict.fromkeys(_recipe(c) for c in checkpoints)) or UNKNOWN,
        "checkpoints": [str(c.get("sha256", UNKNOWN)) for c in checkpoints] or UNKNOWN,
        "ensemble_count": len(checkpoints) or UNKNOWN,
        "verifier": verifier,
        "operation": meta.get("operation") or UNKNOWN,
        "trainable_parameters": trainable,
        "frozen_parameters": frozen,
        "total_parameters": UNKNOWN if UNKNOWN in (trainable, frozen) else trainable + frozen,
        "made_with": f"amrctl {__version__}",
        **{key: UNKNOWN if scores is None else scores[key] for key in SCORES},
    }


def _recipe(checkpoint: Mapping[str, Any]) -> str:
    recipe = checkpoint.get("recipe")
    if isinstance(recipe, Mapping):
        recipe = recipe.get("name")
    return str(recipe or UNKNOWN)


def template(path: Path | None) -> tuple[str, str]:
    """Text and name of the template: the user's file, or the built-in one."""
    if path is None:
        return resources.files(__package__).joinpath("dcase2026.yaml").read_text(encoding="utf-8"), "built-in"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise SubmissionError(f"cannot read the template {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SubmissionError(f"the template {path} is not UTF-8 text") from None


def fill(text: str, name: str, values: Mapping[str, Any]) -> str:
    """The template with every `${placeholder}` as a YAML value; checked to be YAML.

    Raises `SubmissionError`: unknown placeholder (with the known ones), stray dollar sign, or a
    result that is not a YAML mapping.
    """
    form = string.Template(text)
    if not form.is_valid():
        raise SubmissionError(
            f"template {name}: a $ stands alone; write ${{placeholder}}, or $$ for a dollar sign"
        )
    unknown = [key for key in form.get_identifiers() if key not in values]
    if unknown:
        close = near(unknown[0], list(values))
        listed = "" if close.startswith("; there is") else f"; there is: {', '.join(sorted(values))}"
        raise SubmissionError(f"template {name}: no placeholder is called '{unknown[0]}'{close}{listed}")
    filled = form.substitute({key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})
    try:
        parsed = yaml.safe_load(filled)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise SubmissionError(
            f"template {name}: the filled text is not YAML{line} "
            f"({getattr(error, 'problem', None) or error}); write placeholders without quotes"
        ) from None
    if not isinstance(parsed, dict):
        raise SubmissionError(f"template {name}: a YAML mapping is expected")
    return filled
