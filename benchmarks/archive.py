"""Searchable archives: size, speed of indexing, time of a question, and what the graph misses.

    python -m benchmarks.archive
    python -m benchmarks.archive --hours 1 100 --audio recordings/
    python -m benchmarks.archive --quick

Indexing is measured on sound files with a LAION-CLAP of true size and random weights, and the features of
a `qd-detr` beside it. Archives of many hours are simulated: clustered vectors of length 1, recordings of
300 s, each of which has the content of one of the files that were indexed. So a question costs what it
costs in truth: the text network of LAION-CLAP reads the sentence, the vectors are compared, and the
detector reads the stored features of five recordings of 300 s. Only the text network's answer, which
with random weights means nothing, is replaced by a vector near a cluster, apart from all sounds as the
sentences of trained spaces are. Recall compares the graph with all windows.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amrctl import registry
from amrctl.archive import nearest, store
from amrctl.archive.build import index
from amrctl.archive.rank import match
from amrctl.archive.request import IndexRequest
from amrctl.archive.store import Archive, Graph, Recording
from amrctl.cli.app import call
from amrctl.data.extract_jobs import described
from amrctl.encoders.base import (
    AUDIO,
    TEXT,
    AudioEncoder,
    EncoderConfig,
    Sentence,
    TextEncoder,
    load_audio_encoder,
    load_text_encoder,
)
from amrctl.model import checkpoint
from amrctl.model.detector import build
from amrctl.pipeline.archive import ArchiveRequest, ArchiveSearch, streams_of
from amrctl.recipe import load as load_recipe
from benchmarks.measure import interleaved
from benchmarks.table import Row, text_table
from benchmarks.untrained import load

DIM, SECONDS, HOP = 512, 300, 5.0
PER_HOUR = 3600 // SECONDS
SPACE = "benchmark"
Array = npt.NDArray[np.float32]


class _Reader:
    """LAION-CLAP's text network of true size; it reads every sentence, and answers with `planned`."""

    name, dim = SPACE, 768
    planned: Array = np.ones((1, DIM), np.float32)

    def __init__(self, config: EncoderConfig) -> None:
        from transformers import ClapTextConfig, ClapTextModelWithProjection

        torch.manual_seed(0)
        network: Any = ClapTextModelWithProjection(ClapTextConfig())
        self._network: Any = network.eval()

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        with torch.inference_mode():  # about one token a word, and the two at the ends
            for sentence in sentences:
                self._network(input_ids=torch.arange(3, len(sentence.split()) + 5)[None])
        tokens = np.ones((1, 768), np.float32)
        rows = [_Reader.planned[int(s.rpartition(" ")[2]) % len(_Reader.planned)] for s in sentences]
        return [Sentence(tokens, row) for row in rows]

    def attributes(self) -> Mapping[str, Any]:
        return {"space": SPACE}


def _ear(config: EncoderConfig) -> AudioEncoder:
    """LAION-CLAP's audio side of true size, in the space of the reader."""
    made: Any = load("laion-clap", window=config.window, batch=config.batch, device=config.device)
    made.space, made.sha256 = SPACE, hashlib.sha256(b"random weights").hexdigest()
    return made  # type: ignore[no-any-return]


@contextmanager
def _registered() -> Iterator[None]:
    registry.kinds(AUDIO), registry.kinds(TEXT)
    for slot, made in ((AUDIO, _ear), (TEXT, _Reader)):
        registry.component(slot, SPACE, EncoderConfig)(made)
    try:
        yield
    finally:
        for slot in (AUDIO, TEXT):
            del registry._found[slot, SPACE]


def untrained(path: Path) -> Path:
    """A checkpoint of recipe qd-detr (default size) on the embedded encoders, with random weights."""
    torch.manual_seed(0)
    recipe = load_recipe("qd-detr", "finetune", ())
    sides: dict[str, AudioEncoder | TextEncoder]
    sides = {"audio": load_audio_encoder("logmel"), "text": load_text_encoder("words")}
    features: dict[str, list[dict[str, Any]]] = {}
    for side, encoder in sides.items():
        attrs = {key: value for key, value in described(encoder).items() if value is not None}
        stream = {"name": encoder.name, "dim": encoder.dim, "encoder": encoder.name, "dtype": "float16"}
        features[side] = [{**stream, "hop": attrs.get("hop"), "attrs": attrs}]
    made = checkpoint.Checkpoint({}, recipe, features)
    made.tensors = build(recipe, *made.dims, training=False).state_dict()
    checkpoint.write(path, made)
    return path


def unit(rows: npt.NDArray[Any]) -> Array:
    """Rows of length 1."""
    scaled: Array = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def clustered(recordings: int, windows: int, questions: int) -> tuple[Array, Array]:
    """Vectors `(recordings * windows, DIM)` and questions `(questions, DIM)`.

    Of 2,000 centres each recording has three; a window lies around one of them with a cosine of about
    0.55 to others there. Questions lie as far from their centre, all shifted in one direction.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, DIM)).astype(np.float32)
    own = rng.integers(0, len(centres), (recordings, 3))
    rows = np.empty((recordings * windows, DIM), np.float32)
    for r in range(recordings):
        drawn = centres[own[r, rng.integers(0, 3, windows)]]
        rows[r * windows : (r + 1) * windows] = unit(
            drawn + 0.9 * rng.standard_normal((windows, DIM), dtype=np.float32)
        )
    asked = centres[own[rng.integers(0, recordings, questions), 0]]
    shift = rng.standard_normal(DIM)
    return rows, unit(asked + 0.9 * rng.standard_normal((questions, DIM)) + shift)


def simulated(root: Path, real: Path, hours: float, *, graph: bool) -> tuple[Archive, Array, float]:
    """Write an archive of `hours`; its questions, and the seconds that the graph took."""
    before = store.read(real)
    count, windows = max(round(hours * PER_HOUR), 10), round(SECONDS / HOP)
    rows, questions = clustered(count, windows, 40)
    root.mkdir()
    (root / "features").symlink_to((real / "features").resolve())
    np.save(root / "vectors-0.npy", rows.astype(np.float16))
    took, made = 0.0, None
    if graph:
        began = time.perf_counter()
        made = nearest.build(np.load(root / "vectors-0.npy", mmap_mode="r"), root / "nearest-0.faiss")
        took = time.perf_counter() - began
        made = Graph(file="nearest-0.faiss", links=made.links, breadth=made.breadth)
    contents = [recording.sha256 for recording in before.recordings]
    recordings = tuple(
        Recording(
            path=f"{i // 100:04}/recording-{i:06}.flac",
            bytes=10**7,
            mtime_ns=10**18,
            sha256=contents[i % len(contents)],
            seconds=before.recordings[i % len(contents)].seconds,
            windows=windows,
        )
        for i in range(count)
    )
    archive = before.model_copy(
        update={"recordings": recordings, "vectors": "vectors-0.npy", "nearest": made, "unreadable": ()}
    )
    store.write(root, archive)
    return archive, questions, took


def size(root: Path, *names: str) -> float:
    """Megabytes of the files that match."""
    return sum(path.stat().st_size for name in names for path in root.glob(name) if path.is_file()) / 1e6


def indexing(sounds: Path, detector: Path, out: Path) -> list[Row]:
    """Index `sounds` from scratch, and again with nothing changed."""
    request = IndexRequest(sounds, out, f"{SPACE}:none", features=streams_of(detector))
    began = time.perf_counter()
    done = index(request)
    took = time.perf_counter() - began
    began = time.perf_counter()
    index(request)
    again = time.perf_counter() - began
    hours = done.archive.seconds / 3600
    kept = size(out, "features/*/*.npy") / hours
    vectors = size(out, "vectors-*", "index.json") / hours
    note = f"{done.archive.seconds:,.0f} s of sound; LAION-CLAP of true size and logmel, networks loaded anew"
    return [
        Row("index", done.archive.seconds / took, unit="x real time", note=note, higher_is_better=True),
        Row("index again, nothing changed", again, note="networks loaded anew"),
        Row("features of a detector (logmel, float16)", kept, unit="MB / h"),
        Row("vectors (512 numbers, float16)", vectors, unit="MB / h", note="with index.json"),
    ]


def questions_of(
    folder: Path, real: Path, detector: Path, hours: float, rounds: int, graph: bool
) -> list[Row]:
    """Ask a simulated archive."""
    root = folder / f"simulated-{hours:g}"
    archive, planned, took = simulated(root, real, hours, graph=graph)
    _Reader.planned = planned
    opened = {}
    for name, exact in (("exact", True), ("nearest", False))[: 1 + graph]:
        request = ArchiveRequest(root, detector, device="cpu", exact=exact)
        began = time.perf_counter()
        opened[name] = ArchiveSearch(request)
        opened[name].ask(["a dog barks 0"])
        first = time.perf_counter() - began
    turn = iter(range(10**6))

    def ask(search: ArchiveSearch) -> None:
        search.ask([f"a dog barks in the yard {next(turn)}"])

    seconds = interleaved({name: partial(ask, search) for name, search in opened.items()}, rounds)
    heard = opened["exact"].ask(["a dog barks 1"]).answers[0].recordings
    assert len(heard) == 5
    lengths = {round(hit.duration) for hit in heard}
    label = f"{hours:g} h, {archive.windows:,} windows"
    note = (
        f"detector on 5 recordings of {'/'.join(map(str, sorted(lengths)))} s"
        f"{'; reference: all windows' if graph else ', all windows'}"
        f"; the first question {first:.2f} s, with loading"
    )
    rows = [
        Row(
            f"ask, {label}",
            seconds["nearest" if graph else "exact"],
            seconds["exact"] if graph else None,
            note=note,
        ),
        Row(f"size, {label}", size(root, "*.npy", "*.faiss", "*.json") / hours, unit="MB / h"),
    ]
    if graph:
        rows += [Row(f"build the graph, {label}", took), *recall(opened["nearest"], opened["exact"], label)]
    return rows


def recall(quick: ArchiveSearch, exact: ArchiveSearch, label: str) -> list[Row]:
    """What the graph finds of the nearest windows, and of the five recordings that are chosen."""
    graph, vectors = quick.nearest, quick.vectors
    assert graph is not None
    planned = _Reader.planned
    everything = planned @ np.asarray(vectors, np.float32).T
    rows = []
    for k in (5, 10):
        truth = np.argsort(-everything, axis=1, kind="stable")[:, :k]
        found = [graph.search(query, k) for query in planned]
        shared = [len({*f} & {*t}) / k for f, t in zip(found, truth, strict=True)]
        rows.append(Row(f"recall at {k}, {label}", statistics.mean(shared), unit="", higher_is_better=True))
    same = []
    offsets = exact.archive.offsets()
    for query in planned:
        a, b = (match(vectors, offsets, query, wanted=5, nearest=one.nearest) for one in (quick, exact))
        same.append(len({m.recording for m in a} & {m.recording for m in b}) / len(b))
    note = f"{len(planned)} questions"
    return [
        *rows,
        Row(
            f"recall of 5 recordings, {label}",
            statistics.mean(same),
            unit="",
            note=note,
            higher_is_better=True,
        ),
    ]


def measure(hours: Sequence[float], audio: Path | None, quick: bool) -> list[Row]:
    """All rows; `audio`: recordings instead of mixed ones."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name, _registered():
        folder = Path(name)
        detector = untrained(folder / "detector.safetensors")
        if audio is None:
            length = 20 if quick else SECONDS
            mix = ("synth", "--events", "builtin", "--recordings", 5, "--length", length, "-q")
            call([*map(str, mix), "--workers", "1", "--out", str(folder / "mixed")])
            audio = folder / "mixed" / "audio"
        print("archive: indexing ...", file=sys.stderr, flush=True)
        real = folder / "real"
        found += indexing(audio, detector, real)
        for many in hours:
            print(f"archive: {many:g} h ...", file=sys.stderr, flush=True)
            graph = nearest.available() and (quick or many * 3600 / HOP >= nearest.NEAREST_FROM)
            found += questions_of(folder, real, detector, many, 2 if quick else 20, graph)
    return found


def rows(quick: bool) -> list[Row]:
    """Indexing, then questions to archives of 1, 10 and 100 hours."""
    return measure((1,) if quick else (1, 10, 100), None, quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.archive", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 10, 100], help="simulated archives")
    parser.add_argument("--audio", type=Path, help="five recordings of 300 s of your own (default: mixed)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that everything runs")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found = measure([1.0] if given.quick else given.hours, given.audio, given.quick)
    print(f"{given.threads} threads\n\n{text_table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
