"""Searchable archives: size, speed of indexing, time of a question, and what the graph misses.

    python -m benchmarks.archive
    python -m benchmarks.archive --audio recordings/ --simulated 100 1000
    python -m benchmarks.archive --quick

Archives of 1 and 10 hours are made from sound files: `amrctl index` with a LAION-CLAP of true size and
random weights, and the features of a `qd-detr` beside it. One of 100 hours is simulated: clustered vectors
of length 1, recordings of 300 s, each of which has the content of one of the files that were indexed. So
a question costs what it costs in truth: the text network of LAION-CLAP reads the sentence, the vectors
are compared, and the detector reads the stored features of five recordings of 300 s. Only the text
network's answer, which with random weights means nothing, is replaced by a vector near some window, apart
from all sounds as the sentences of trained spaces are.

Recall compares the graph with all windows, on simulated vectors: those of a random network lie so close
together that float16 hardly tells them apart. The command builds a graph from `NEAREST_FROM` windows on;
for fewer it compares all, and the graph is built here to be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import os
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

INDEXED, SIMULATED = (1, 10), (1, 10, 100)  # hours
DIM, SECONDS = 512, 300
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


def questions_near(rows: Array, count: int) -> Array:
    """`(count, DIM)` vectors with a cosine of about 0.6 to a random one of `rows`, all shifted in one
    direction."""
    rng = np.random.default_rng(1)
    near = rows[rng.integers(0, len(rows), count)]
    noise, shift = rng.standard_normal((count, DIM)), rng.standard_normal(DIM)
    return unit(near + (0.9 * noise + shift) / np.sqrt(DIM))


def clustered(windows: Sequence[int]) -> Array:
    """Vectors `(sum of windows, DIM)` of recordings that have so many.

    Of 2,000 centres each recording has three; a window lies around one of them with a cosine of about
    0.55 to others there.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, DIM)).astype(np.float32)
    pieces = []
    for count in windows:
        drawn = centres[rng.integers(0, len(centres), 3)[rng.integers(0, 3, count)]]
        pieces.append(unit(drawn + 0.9 * rng.standard_normal((count, DIM), dtype=np.float32)))
    return np.concatenate(pieces)


def simulated(root: Path, real: Path, hours: float) -> None:
    """Write an archive of `hours` without sounds, which reads the features of archive `real`."""
    before = store.read(real)
    known = before.recordings
    recordings: list[Recording] = []
    seconds = 0.0
    while seconds < 3600 * hours:
        like, i = known[len(recordings) % len(known)], len(recordings)
        path = f"{i // 100:04}/recording-{i:06}.flac"
        recordings.append(like.model_copy(update={"path": path}))
        seconds += like.seconds
    root.mkdir()
    (root / "features").symlink_to((real / "features").resolve())
    vectors = clustered([recording.windows for recording in recordings])
    np.save(root / "vectors-0.npy", vectors.astype(np.float16))
    update = {"vectors": "vectors-0.npy", "nearest": None, "unreadable": ()}
    store.write(root, before.model_copy(update={"recordings": tuple(recordings), **update}))


def size(root: Path, *names: str) -> float:
    """Megabytes of the files that match."""
    return sum(path.stat().st_size for name in names for path in root.glob(name) if path.is_file()) / 1e6


def mixed(folder: Path, recordings: int, length: int) -> list[Path]:
    """Sound files made from built-in events."""
    mix = ("synth", "--events", "builtin", "--recordings", recordings, "--length", length, "-q")
    call([*map(str, mix), "--workers", "2", "--out", str(folder)])
    return sorted(path for path in (folder / "audio").iterdir() if path.is_file())


def gathered(files: Sequence[Path], folder: Path) -> Path:
    """The files under one folder."""
    folder.mkdir()
    for file in files:
        os.link(file, folder / file.name)
    return folder


def indexing(sounds: Path, detector: Path, out: Path) -> list[Row]:
    """Index `sounds` from scratch, and again with nothing changed."""
    request = IndexRequest(sounds, out, f"{SPACE}:none", features=streams_of(detector))
    began = time.perf_counter()
    done = index(request)
    took = time.perf_counter() - began
    began = time.perf_counter()
    index(request)
    again = time.perf_counter() - began
    seconds = done.archive.seconds
    kept = size(out, "features/*/*.npy") / seconds * 3600
    label = label_of(done.archive)
    files = len(done.archive.recordings)
    note = f"{took:,.1f} s for {files} files; LAION-CLAP of true size and logmel, networks loaded anew"
    return [
        Row(f"index, {label}", seconds / took, unit="x real time", note=note, higher_is_better=True),
        Row(f"index again, {label}", again, note="nothing changed"),
        Row(f"features of a detector, {label}", kept, unit="MB / h", note="logmel, float16"),
    ]


def label_of(archive: Archive) -> str:
    """Which archive a row is about."""
    return f"{archive.seconds / 3600:.3g} h, {archive.windows:,} windows"


def asking(root: Path, detector: Path, rounds: int) -> list[Row]:
    """Ask an archive, as the command does and, where it has a graph, through all windows; its size."""
    archive = plan(root)
    graph = archive.nearest is not None
    label = label_of(archive)
    opened, first = {}, {}
    for name in ("graph", "exact") if graph else ("exact",):
        began = time.perf_counter()
        opened[name] = ArchiveSearch(ArchiveRequest(root, detector, device="cpu", exact=name == "exact"))
        opened[name].ask(["a dog barks 0"])
        first[name] = time.perf_counter() - began
    turn = iter(range(10**6))

    def ask(search: ArchiveSearch) -> None:
        search.ask([f"a dog barks in the yard {next(turn)}"])

    seconds = interleaved({name: partial(ask, search) for name, search in opened.items()}, rounds)
    heard = opened["exact"].ask(["a dog barks 1"]).answers[0].recordings
    assert len(heard) == 5
    lengths = "/".join(map(str, sorted({round(hit.duration) for hit in heard})))
    own = next(iter(opened))
    note = f"detector on 5 recordings of {lengths} s; {'reference: ' if graph else ''}all windows"
    note += f"; the first question {first[own]:.2f} s, with loading"
    kept = size(root, "vectors-*", "index.json", "*.faiss") / archive.seconds * 3600
    return [
        Row(f"ask, {label}", seconds[own], seconds["exact"] if graph else None, note=note),
        Row(f"size, {label}", kept, unit="MB / h", note="vectors (512 of float16), index.json, graph"),
    ]


def plan(root: Path) -> Archive:
    """Open the archive; from here on the reader answers with questions about it."""
    archive = store.read(root)
    _Reader.planned = questions_near(np.load(root / archive.vectors).astype(np.float32), 40)
    return archive


def with_graph(root: Path, detector: Path) -> list[Row]:
    """Add a graph to the archive, and say what it finds."""
    archive = plan(root)
    began = time.perf_counter()
    made = nearest.build(np.load(root / archive.vectors, mmap_mode="r"), root / "nearest-0.faiss")
    took = time.perf_counter() - began
    graph = Graph(file="nearest-0.faiss", links=made.links, breadth=made.breadth)
    store.write(root, archive.model_copy(update={"nearest": graph}))
    quick, exact = (
        ArchiveSearch(ArchiveRequest(root, detector, device="cpu", exact=whole)) for whole in (False, True)
    )
    label = label_of(archive)
    return [Row(f"build the graph, {label}", took), *recall(quick, exact, label)]


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


def measure(hours: Sequence[float], simulate: Sequence[float], audio: Path | None, quick: bool) -> list[Row]:
    """All rows. `hours`: archives that are indexed, of mixed sounds; `simulate`: archives that are not;
    `audio`: a folder that is indexed instead."""
    found: list[Row] = []
    rounds = 2 if quick else 20
    with tempfile.TemporaryDirectory() as name, _registered():
        folder = Path(name)
        detector = untrained(folder / "detector.safetensors")
        length = 20 if quick else SECONDS
        counts = [max(round(many * 3600 / length), 5) for many in hours]
        folders = [] if audio is None else [audio]
        if audio is None:
            print(f"archive: mixing {max(counts) * length / 3600:.3g} h ...", file=sys.stderr, flush=True)
            files = mixed(folder / "mixed", max(counts), length)
            folders = [gathered(files[:count], folder / f"sounds-{count}") for count in counts]
        real: list[Path] = []
        for sounds in folders:
            real.append(folder / f"indexed-{len(real)}")
            print(f"archive: indexing {sounds.name} ...", file=sys.stderr, flush=True)
            found += indexing(sounds, detector, real[-1])
        for root in real:
            found += asking(root, detector, rounds)
        for many in simulate:
            print(f"archive: simulating {many:g} h ...", file=sys.stderr, flush=True)
            root = folder / f"simulated-{many:g}"
            simulated(root, real[0], many)
            if nearest.available():
                found += with_graph(root, detector)
            if store.read(root).windows >= nearest.NEAREST_FROM or quick:
                found += asking(root, detector, rounds)
    return found


def rows(quick: bool) -> list[Row]:
    """Archives of 1 and 10 hours from sound files, and simulated ones up to 100 hours."""
    return measure((0.03,), (1,), None, True) if quick else measure(INDEXED, SIMULATED, None, False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.archive", description=(__doc__ or "").splitlines()[0]
    )
    hours: dict[str, Any] = {"type": float, "nargs": "+", "metavar": "H"}
    parser.add_argument(
        "--hours", default=INDEXED, help="archives that are indexed, of mixed sounds", **hours
    )
    parser.add_argument("--simulated", default=SIMULATED, help="archives that are not", **hours)
    parser.add_argument("--audio", type=Path, help="index these recordings (five or more) instead")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that everything runs")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found = rows(True) if given.quick else measure(given.hours, given.simulated, given.audio, False)
    print(f"{given.threads} threads\n\n{text_table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
