"""Speed and memory of extraction: `python -m benchmarks.extraction`.

    python -m benchmarks.extraction
    python -m benchmarks.extraction --encoder wavlm-large --batch 8 --windows 64
    python -m benchmarks.extraction --encoder m2d-clap:checkpoint-30.pth --encoder logmel

For each encoder: seconds of audio encoded per second, in batches, beside a loop that encodes one window
at a time in float32 with the published network as it stands (transformers' own, where it has it) and the
same front end on the whole of what the network hears, in a process of its own without our settings; then the
same in batches of bfloat16. All run by turns, so that a busy machine hits them alike. Encoders without
weights get random ones of true size. The limit counts the products of the published network.
Then time and the largest memory of a process that hears one minute, and one hour, of sound with
`logmel` and a small network.
"""

from __future__ import annotations

import os

# as the command does; read when torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from amrctl.data.framing import batch_of
from amrctl.data.hearing import is_network
from amrctl.encoders.base import AudioEncoder, Rows
from amrctl.encoders.frozen import FrozenAudio
from benchmarks.apart import apart
from benchmarks.measure import Work, flops, interleaved, matrix_rate
from benchmarks.table import Row, text_table
from benchmarks.untrained import UNTRAINED, load

ROUNDS, WINDOWS = 3, 32
UNIT = "s of audio / s"


def rows(quick: bool) -> list[Row]:
    """Speed of every encoder, then memory over the length of a recording."""
    encoders = ["logmel", "m2d-clap"] if quick else ["logmel", *UNTRAINED]
    windows, rounds = (2, 1) if quick else (WINDOWS, ROUNDS)
    found = [row for spec in encoders for row in speed(spec, windows, None, rounds)]
    return found + memory((0.1, 0.2) if quick else (1.0, 60.0))


def speed(spec: str, count: int, batch: int | None, rounds: int) -> list[Row]:
    """Rows of one encoder: float32, and bfloat16 where it has a network."""
    exact = load(spec, batch=batch, precision="fp32")
    encoders = {"fp32": exact}
    if is_network(exact):
        encoders["bf16"] = load(spec, batch=batch, precision="bf16")
    windows = made_up(exact, count)
    works: dict[str, Work] = {
        name: partial(encode, one, windows, batch_of(one)) for name, one in encoders.items()
    }
    with apart(one_at_a_time, spec=spec, count=count) as loop:
        seconds = interleaved({"one at a time": loop, **works}, rounds)
    sound = count * exact.hop
    operations = flops(partial(as_published(spec).encode, windows[:1])) if is_network(exact) else 0.0
    found = []
    for name, one in encoders.items():
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        found.append(
            Row(
                f"extract {exact.name}" + (f", {name}" if is_network(exact) else ""),
                sound / seconds[name],
                sound / seconds["one at a time"],
                UNIT,
                limit=exact.hop * matrix_rate(dtype) / operations if operations else None,
                note=f"batches of {batch_of(one)}; reference: as published, one window at a time, float32",
                higher_is_better=True,
            )
        )
    return found


def as_published(spec: str) -> AudioEncoder:
    """The encoder with its network as it stands, in float32."""
    published = load(spec, batch=1, precision="fp32")
    if isinstance(published, FrozenAudio):
        published.rearrange = False
    return published


def one_at_a_time(spec: str, count: int) -> Work:
    """The loop that the others are compared with."""
    published = as_published(spec)
    return partial(encode, published, made_up(published, count), 1)


def made_up(encoder: AudioEncoder, count: int) -> Rows:
    """Noise of `count` windows."""
    size = round(encoder.window * encoder.sample_rate)
    return np.random.default_rng(0).uniform(-0.3, 0.3, (count, size)).astype(np.float32)


def encode(encoder: AudioEncoder, windows: Rows, batch: int) -> None:
    """Encode all windows, `batch` at a time."""
    for start in range(0, len(windows), batch):
        encoder.encode(windows[start : start + batch])


_HEAR = """
import sys
from amrctl.data.hearing import hear
from amrctl.encoders.base import load_audio_encoder
from benchmarks.cases.commands import own_peak
from pathlib import Path
encoders = [load_audio_encoder("logmel"), load_audio_encoder("wavlm-base:" + sys.argv[2])]
(answer,) = hear([("a", Path(sys.argv[1]))], encoders)
print(len(answer.rows["logmel"]), own_peak())
"""


def memory(minutes: Sequence[float]) -> list[Row]:
    """Time and largest memory (Linux units) of processes that hear recordings of these lengths."""
    import soundfile
    from transformers import WavLMConfig, WavLMModel

    found = []
    with tempfile.TemporaryDirectory() as held:
        weights, path = Path(held, "weights"), Path(held, "a.flac")
        torch.manual_seed(0)
        small = WavLMConfig(num_hidden_layers=1, intermediate_size=64, conv_dim=(8,) * 7)
        WavLMModel(small).save_pretrained(weights)
        piece = np.random.default_rng(0).uniform(-0.3, 0.3, 6 * 44_100).astype(np.float32)
        for length in minutes:
            with soundfile.SoundFile(path, "w", 44_100, 1) as sound:
                for _ in range(round(length * 10)):
                    sound.write(piece)
            command = [sys.executable, "-c", _HEAR, str(path), str(weights)]
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            took = time.perf_counter() - began
            frames, most = done.stdout.split()
            note = f"logmel and a small network, {int(frames):,} frames; memory of the whole process"
            found.append(Row(f"hear {length:g} min", took, memory_mb=float(most), note=note))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.extraction", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--encoder", action="append", help="as extract-tef takes it (repeatable)")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows to encode")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each is measured")
    parser.add_argument("--batch", type=int, help="default: the encoder's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="the long recording; 0: no memory rows")
    given = parser.parse_args(arguments)

    torch.set_num_threads(given.threads)
    found: list[Row] = []
    for spec in given.encoder or ["logmel", *UNTRAINED]:
        print(f"{spec} ...", file=sys.stderr, flush=True)
        found += speed(spec, given.windows, given.batch, given.rounds)
    if given.minutes:
        found += memory((1.0, given.minutes))
    print(f"{given.threads} threads, {given.windows} windows, median of {given.rounds} rounds\n")
    print(text_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
