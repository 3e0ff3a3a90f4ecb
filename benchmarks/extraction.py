"""Speed and memory of extraction: `python -m benchmarks.extraction`.

    python -m benchmarks.extraction
    python -m benchmarks.extraction --encoder wavlm-large --batch 8 --seconds 64
    python -m benchmarks.extraction --encoder m2d-clap:checkpoint-30.pth --encoder logmel

For each encoder: seconds of audio encoded per second, in batches and one window at a time with the same
network, both in turns so that a busy machine hits them alike. The WavLM networks get random weights of
their true size when the spelling names none. Then the largest memory of a process that hears one minute,
and one hour, of sound with `logmel` and a small network.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amrctl.encoders.base import AudioEncoder, Rows, load_audio_encoder

ROUNDS = 3
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
SMALL = {"num_hidden_layers": 1, "intermediate_size": 64, "conv_dim": (8,) * 7}
SIZES: dict[str, dict[str, object]] = {"wavlm-base": {}, "wavlm-base-plus": {}, "wavlm-large": LARGE}


def random_wavlm(folder: Path, **sizes: object) -> Path:
    """A WavLM with random weights in the Hub's layout."""
    import torch
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    WavLMModel(WavLMConfig.from_dict(sizes)).save_pretrained(folder)
    return folder


def pace(encoder: AudioEncoder, windows: Rows, batch: int) -> float:
    """Wall seconds to encode all windows, `batch` at a time."""
    began = time.perf_counter()
    for start in range(0, len(windows), batch):
        encoder.encode(windows[start : start + batch])
    return time.perf_counter() - began


def speed(spec: str, seconds: int, batch: int | None, precision: str) -> tuple[str, float, float, float]:
    """Name, seconds of audio a second in batches and window by window, and the median ratio."""
    encoder = load_audio_encoder(spec, batch=batch, precision=precision)
    size = round(encoder.window * encoder.sample_rate)
    windows = np.random.default_rng(0).uniform(-0.3, 0.3, (seconds, size)).astype(np.float32)
    together = batch or int(getattr(encoder, "batch", 32))
    pace(encoder, windows[:together], together)  # what is made once is made
    pace(encoder, windows[:1], 1)
    times = [(pace(encoder, windows, together), pace(encoder, windows, 1)) for _ in range(ROUNDS)]
    batched, single = (min(t[i] for t in times) for i in (0, 1))
    sound = seconds * encoder.hop
    return encoder.name, sound / batched, sound / single, statistics.median(b / a for a, b in times)


_HEAR = """
import resource, sys
from amrctl.data.hearing import hear
from amrctl.encoders.base import load_audio_encoder
from pathlib import Path
encoders = [load_audio_encoder("logmel"), load_audio_encoder("wavlm-base:" + sys.argv[2])]
(answer,) = hear([("a", Path(sys.argv[1]))], encoders)
print(len(answer.rows["logmel"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: Path, minutes: int, weights: Path) -> tuple[int, float]:
    """Frames, and the largest memory in MiB, of a process that hears a recording (Linux units)."""
    import soundfile

    path = folder / f"{minutes}.flac"
    noise = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 44_100, 1) as sound:
        for _ in range(minutes):
            sound.write(noise.uniform(-0.3, 0.3, 60 * 44_100).astype(np.float32))
    done = subprocess.run(
        [sys.executable, "-c", _HEAR, str(path), str(weights)], capture_output=True, text=True, check=True
    )
    path.unlink()
    frames, most = map(int, done.stdout.split())
    return frames, most / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the two tables; exit code 0."""
    parser = argparse.ArgumentParser("python -m benchmarks.extraction", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", action="append", help="as extract-tef takes it (repeatable)")
    parser.add_argument("--seconds", type=int, default=32, help="windows to encode")
    parser.add_argument("--batch", type=int, help="default: the encoder's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--minutes", type=int, default=60, help="the long recording; 0: no memory table")
    given = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        print(f"{given.threads} threads, {given.seconds} windows\n")
        print("| encoder | audio s per s, batched | one window at a time | ratio |\n|---|---|---|---|")
        for spec in given.encoder or ["logmel", "wavlm-base", "wavlm-large"]:
            made = f"{spec}:{random_wavlm(folder / spec, **SIZES[spec])}" if spec in SIZES else spec
            name, batched, single, ratio = speed(made, given.seconds, given.batch, given.precision)
            print(f"| {name} | {batched:.2f} | {single:.2f} | {ratio:.2f} |", flush=True)
        if given.minutes:
            weights = random_wavlm(folder / "small", **SMALL)
            print("\n| recording | frames | largest memory |\n|---|---|---|")
            for minutes in (1, given.minutes):
                frames, most = memory(folder, minutes, weights)
                print(f"| {minutes} min | {frames:,} | {most:.0f} MiB |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
