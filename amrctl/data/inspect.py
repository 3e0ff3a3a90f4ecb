"""What is in this file? Reads just enough of any file that amrctl knows to explain it on one screen."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amrctl.data import jsonlines
from amrctl.data.explained import (
    Explained,
    Listing,
    file_facts,
    manifest_facts,
    meta_facts,
    origin_facts,
    paths,
    prediction_facts,
    value_range,
)
from amrctl.data.features import SIDES, FeatureFile
from amrctl.data.inspect_runs import (
    explain_checkpoint,
    explain_log,
    explain_run,
    explain_seeds,
    looks_like_safetensors,
)
from amrctl.data.manifest import read_manifest
from amrctl.data.npz import KEYS
from amrctl.data.predictions import meta_path, read_predictions
from amrctl.data.score_matrix import is_scores, read_scores
from amrctl.errors import AmrctlError
from amrctl.run_folder import RunFolder, read_seeds

KNOWN = (
    "manifest, features, predictions, score matrix, checkpoint, run folder, metrics, submission package, "
    "official npz features"
)
_ZIP_FAULTS = (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, zlib.error)


def explain(path: Path | str) -> Explained:
    """Find out what a file or folder is, by its content, and describe it.

    Of a checkpoint only the header is read, of features only names and lengths. Raises the
    `AmrctlError` of the format for a damaged file, and one that lists what is known for another.
    """
    path = Path(path)
    if not path.exists():
        raise AmrctlError(f"{path} does not exist")
    if path.is_dir():
        return _folder(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise AmrctlError(f"cannot read {path}: {error.strerror}") from None
    if head.startswith(b"\x89HDF\r\n\x1a\n") or path.suffix in (".h5", ".hdf5"):
        return _scores(path) if is_scores(path) else _features(path)
    if head.startswith(b"PK"):
        return _zip(path)
    if path.suffix == ".safetensors" or looks_like_safetensors(path, head):
        return explain_checkpoint(path)
    if path.suffix in (".yaml", ".yml"):
        raise AmrctlError(f"{path} is a YAML file; if it is a recipe, amrctl recipes {path} shows it")
    return _text(path)


def _unknown(path: Path, why: str = "") -> AmrctlError:
    return AmrctlError(f"{path} is none of the files that amrctl knows{why} ({KNOWN})")


def _text(path: Path) -> Explained:
    with open(path, "rb") as stream:
        if b"\0" in stream.read(1 << 16):  # a sound, say: do not read gigabytes to find that out
            raise _unknown(path)
    try:
        text = jsonlines.read_text(path, AmrctlError, "JSON")
    except AmrctlError:
        raise _unknown(path) from None
    whole = jsonlines.parse(text)
    if isinstance(whole, list):
        if whole and all(isinstance(entry, dict) and "yid" in entry for entry in whole):
            return _manifest(path)
        raise _unknown(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    record = jsonlines.parse(first)
    record = record if isinstance(record, dict) else whole
    if not isinstance(record, dict):
        if '"yid"' in text[:1000]:  # CASTELLA's JSON with a fault: its reader names the line
            return _manifest(path)
        raise _unknown(path, "; its first line is no JSON object" if first else "; it is empty")
    if "pred_relevant_windows" in record:
        return _predictions(path, record)
    if "qid" in record:
        return _manifest(path)
    if "epoch" in record and "loss" in record:
        return explain_log(path)
    if isinstance(whole, dict):
        if isinstance(whole.get("brief"), dict):
            return _metrics(path, whole)
        if "operation" in whole:
            return Explained(path, "provenance of predictions", meta_facts(whole))
    raise _unknown(path)


def _manifest(path: Path) -> Explained:
    manifest = read_manifest(path, clip_windows=True)
    return Explained(path, "manifest", {**manifest_facts(manifest), **file_facts(path)}, notes=manifest.notes)


def _predictions(path: Path, record: Mapping[str, Any]) -> Explained:
    windows = record["pred_relevant_windows"]
    challenge = bool(
        isinstance(windows, list) and windows and all(isinstance(w, list) and len(w) == 2 for w in windows)
    )
    read = read_predictions(path, scores=not challenge)
    kind = "predictions in the challenge's form (no scores)" if challenge else "predictions"
    facts = {**prediction_facts(read, scores=not challenge), **meta_facts(read.meta), **file_facts(path)}
    notes = () if read.meta else (f"no {meta_path(path).name} beside it: where it comes from is unknown",)
    return Explained(path, kind, facts, notes=notes)


def _metrics(path: Path, value: Mapping[str, Any]) -> Explained:
    rows = [(str(k), v) for k, v in value["brief"].items() if jsonlines.is_number(v)]
    if isinstance(extra := value.get("extra"), Mapping):
        rows += [(str(k), v) for k, v in extra.items() if jsonlines.is_number(v)]
    facts: dict[str, Any] = {}
    if isinstance(reference := value.get("reference"), Mapping):
        facts["scored on"] = reference.get("path")
        facts |= {k: reference[k] for k in ("queries", "recordings", "moments") if k in reference}
    if told := paths(value.get("files")):
        facts["prediction files"] = told
    against = value.get("against")
    if isinstance(against, Mapping) and (told := paths(against.get("files"))):
        facts["compared with"] = told
    if "trained_on_reference" in value:
        seen = value["trained_on_reference"]
        facts["trained on this manifest"] = "yes" if seen is True else "no" if seen is False else "unknown"
    facts |= origin_facts(value.get("origin"))
    told_notes = value.get("notes")
    notes = tuple(map(str, told_notes)) if isinstance(told_notes, list) else ()
    return Explained(path, "metrics", facts, (Listing("percent", ("metric", "value"), tuple(rows)),), notes)


def _scores(path: Path) -> Explained:
    matrix = read_scores(path)
    facts: dict[str, Any] = {
        "queries": len(matrix.queries),
        "recordings": len(matrix.vids),
        "scores": value_range(matrix.scores.ravel().tolist()),
        "written for": "known recordings" if any(matrix.written_for) else "no recording (a blind list)",
    }
    if made_by := paths(matrix.meta.get("checkpoints")):
        facts["checkpoints"] = made_by
    facts |= origin_facts(matrix.meta.get("origin"))
    return Explained(path, "score matrix", {**facts, **file_facts(path)})


def _features(path: Path) -> Explained:
    rows: list[tuple[str | int | float, ...]] = []
    with FeatureFile(path) as file:
        for side in SIDES:
            for name, info in file.streams(side).items():
                lengths = list(file.lengths(side, name).values())
                more = f"; sentence vector {info.pooled}" if info.pooled else ""
                more += f"; space {info.space}" if info.space else ""
                rows.append(
                    (
                        side,
                        name,
                        info.count,
                        value_range(lengths),
                        info.dim,
                        info.dtype,
                        "" if info.hop is None else info.hop,
                        f"{info.encoder}{more}",
                    )
                )
        attrs = file.attrs
    facts: dict[str, Any] = {"tool": attrs.get("tool", "unknown")}
    facts |= file_facts(path, hashed=False)
    columns = ("side", "stream", "count", "rows each", "dim", "dtype", "hop (s)", "encoder")
    return Explained(
        path,
        "features",
        facts,
        (Listing("streams (rows: frames of audio, tokens of text)", columns, tuple(rows)),),
    )


def _zip(path: Path) -> Explained:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if any(name.endswith("data.pkl") for name in names):
                return Explained(
                    path,
                    "PyTorch file",
                    {
                        "meaning": "the state of a run, or a checkpoint of the official code",
                        "use": "an official checkpoint goes to amrctl predict --checkpoint as it is",
                        **file_facts(path, hashed=False),
                    },
                )
            if names and all(name.endswith(".npy") for name in names):
                return _npz(path)
    except _ZIP_FAULTS as error:
        raise AmrctlError(
            f"{path} is not a readable zip file ({' '.join(str(error).split())[:80]})"
        ) from None
    sizes = {info.filename: info.file_size for info in infos if not info.is_dir()}
    if _labels(sizes):
        return _submission(path, sizes)
    raise _unknown(path)


def _npz(path: Path) -> Explained:
    rows: list[tuple[str | int | float, ...]] = []
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                array = file[name]
                rows.append((name, str(array.shape), str(array.dtype)))
    except (*_ZIP_FAULTS, KeyError) as error:
        raise AmrctlError(
            f"{path} is not a readable npz file ({' '.join(str(error).split())[:80]})"
        ) from None
    sides = [side for side, key in KEYS.items() if key in {row[0] for row in rows}]
    facts = {
        "meaning": f"official {sides[0]} features"
        if sides
        else "arrays under other names than the official ones",
        "use": "amrctl extract-tef --audio-npz DIR --text-npz DIR --name NAME packs such folders",
        **file_facts(path),
    }
    return Explained(
        path, "npz features", facts, (Listing("arrays", ("name", "shape", "dtype"), tuple(rows)),)
    )


def _folder(path: Path) -> Explained:
    run = RunFolder(path)
    listed = read_seeds(path)
    if listed is not None:
        return explain_seeds(path, listed)
    if run.log.is_file() or run.state.is_file() or run.best().is_file():
        return explain_run(path, run)
    if (path / "settings.json").is_file() and path.name.endswith(".part"):
        done = {
            f"{p.parent.name}/{p.name}": len(list(p.glob("*.npy")))
            for p in sorted(path.glob("*/*"))
            if p.is_dir()
        }
        use = "the same amrctl extract-tef goes on; --overwrite with other settings starts anew"
        return Explained(
            path, "interrupted extraction", {**{f"{k} done": n for k, n in done.items()}, "use": use}
        )
    sizes = {p.name: p.stat().st_size for p in sorted(path.iterdir()) if p.is_file()}
    if _labels(sizes):
        return _submission(path, sizes)
    npz = sum(1 for _ in path.rglob("*.npz"))
    if npz:
        use = "amrctl extract-tef --audio-npz DIR --text-npz DIR --name NAME packs such folders"
        return Explained(path, "folder of official features", {"npz files": npz, "use": use})
    raise AmrctlError(f"{path} is a folder, but no run, submission, feature folder or interrupted extraction")


def _labels(names: Mapping[str, int]) -> list[str]:
    ends = (".output.jsonl", ".output.csv")
    return sorted({Path(n).name.removesuffix(end) for n in names for end in ends if n.endswith(end)})


def _submission(path: Path, sizes: Mapping[str, int]) -> Explained:
    labels = _labels(sizes)
    lacking = [
        f"{label}.meta.yaml" for label in labels if not any(n.endswith(f"{label}.meta.yaml") for n in sizes)
    ]
    facts = {
        "systems": ", ".join(labels),
        "use": f"amrctl submit --check {path} --queries M.jsonl checks it against the query list",
    }
    notes = tuple(f"{name} is missing" for name in lacking)
    table = Listing("files", ("file", "bytes"), tuple(sizes.items()))
    return Explained(path, "submission package", facts, (table,), notes)
