"""An embedded bank of event sounds, synthesised by formula, so that nothing has to be downloaded.

Every kind is a function of a random generator: pitch, tempo and timbre vary from clip to clip,
while band, harmonic structure and rhythm stay the kind's own. All kinds are audible in every
second of a clip and lie below 8 kHz, so that any rate from 16 kHz serves. The sounds are ours;
they imitate, they were not recorded.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amrctl.data.soundbank_captions import CAPTIONS
from amrctl.data.splits import divide
from amrctl.errors import AmrctlError, near
from amrctl.provenance import writing_folder

Samples = npt.NDArray[np.float32]
Wave = npt.NDArray[np.float64]
Random = np.random.Generator

SHORTEST, LONGEST = 2.0, 12.0  # seconds: lengths of clips
_LOWEST_RATE = 16_000


class _Sketch:
    """A clip in the making: `size` samples of silence to draw on."""

    def __init__(self, rng: Random, rate: int, seconds: float) -> None:
        self.rng, self.rate, self.size = rng, rate, round(seconds * rate)
        self.time: Wave = np.arange(self.size) / rate
        self.wave: Wave = np.zeros(self.size)

    def pick(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def span(self, seconds: float) -> Wave:
        return np.arange(max(1, round(seconds * self.rate))) / self.rate

    def add(self, at: float, piece: Wave) -> None:
        """Add `piece` at `at` seconds; what lies past the end is dropped."""
        first = round(at * self.rate)
        part = piece[: max(0, self.size - first)]
        self.wave[first : first + len(part)] += part

    def beats(self, period: float, jitter: float) -> Iterable[float]:
        """Times from 0 on, `period` seconds apart, each moved by up to `jitter` of a period."""
        last = self.size / self.rate - 0.05
        count = int(last / period) + 1
        for beat in range(count):
            yield max(0.0, (beat + self.pick(-jitter, jitter) * (beat > 0)) * period)

    def curve(self, step: float, low: float, high: float) -> Wave:
        """A line through random heights between `low` and `high`, one every `step` seconds."""
        knots = np.arange(0, LONGEST + 2 * step, step)
        return np.interp(self.time, knots, self.rng.uniform(low, high, len(knots)))

    def noise(self, size: int, low: float, high: float) -> Wave:
        """White noise between `low` and `high` Hz, root mean square 1."""
        spectrum = np.fft.rfft(self.rng.standard_normal(size))
        frequency = np.fft.rfftfreq(size, 1 / self.rate)
        edge = np.maximum(frequency, 1e-9)
        spectrum *= 1 / np.sqrt(1 + (low / edge) ** 8) / np.sqrt(1 + (edge / high) ** 8)
        shaped = np.fft.irfft(spectrum, size)
        return np.asarray(shaped / (np.sqrt(np.mean(shaped**2)) + 1e-12))


def _phase(frequency: Wave, rate: int) -> Wave:
    return np.asarray(2 * np.pi * np.cumsum(frequency) / rate)


def _arch(size: int, edge: float = 0.5) -> Wave:
    """A window that rises and falls over `edge` of its length each (0.5: a full arch)."""
    x = np.linspace(0, 1, size)
    rise = np.clip(np.minimum(x, 1 - x) / max(edge, 1e-9), 0, 1)
    return np.asarray(np.sin(np.pi / 2 * rise) ** 2)


def _bell(s: _Sketch) -> None:
    base = s.pick(420, 620)
    partials = (
        (0.5, 0.5, 2.2),
        (1.0, 1.0, 1.6),
        (1.19, 0.7, 1.2),
        (1.56, 0.5, 0.9),
        (2.0, 0.6, 0.7),
        (2.66, 0.3, 0.5),
    )
    for at in s.beats(s.pick(0.8, 1.2), 0.03):
        t = s.span(2.5)
        s.add(
            at,
            sum(
                (a * np.exp(-t / d) * np.sin(2 * np.pi * base * r * t) for r, a, d in partials),
                np.zeros(len(t)),
            ),
        )


def _siren(s: _Sketch) -> None:
    low, high, period = s.pick(550, 650), s.pick(1250, 1450), s.pick(1.0, 1.6)
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * s.time / period + s.pick(0, 6))
    phase = _phase(low + (high - low) * swing, s.rate)
    s.wave += np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase)


def _dog(s: _Sketch) -> None:
    pitch = s.pick(380, 520)
    for at in s.beats(s.pick(0.38, 0.55), 0.12):
        t = s.span(s.pick(0.16, 0.22))
        glide = pitch * s.pick(0.93, 1.07) * (1 + 0.5 * np.sin(np.pi * t / t[-1])) * np.exp(-1.5 * t)
        phase = _phase(glide, s.rate)
        voice = sum((np.sin(k * phase) / k**0.6 for k in range(1, 6)), np.zeros(len(t)))
        rough = s.noise(len(t), 600, 2500)
        s.add(at, (voice + 0.5 * rough) * _arch(len(t), 0.25) * np.exp(-5 * t))


def _bird(s: _Sketch) -> None:
    centre = s.pick(4200, 5200)
    for at in s.beats(s.pick(0.16, 0.24), 0.2):
        t = s.span(s.pick(0.09, 0.13))
        sweep = centre * s.pick(0.9, 1.1) + s.pick(-1200, 1200) * np.linspace(-0.5, 0.5, len(t))
        sweep += 350 * np.sin(2 * np.pi * s.pick(25, 40) * t)
        s.add(at, np.sin(_phase(sweep, s.rate)) * _arch(len(t)))


def _engine(s: _Sketch) -> None:
    base = s.pick(70, 95) * (1 + 0.03 * np.sin(2 * np.pi * s.pick(0.2, 0.5) * s.time))
    phase = _phase(base, s.rate)
    for k in range(1, 9):
        s.wave += np.sin(k * phase + s.pick(0, 6)) / k**0.8
    s.wave *= 1 + 0.3 * np.sin(phase / 4)
    s.wave += 0.2 * s.noise(s.size, 60, 400)


def _rain(s: _Sketch) -> None:
    s.wave += s.noise(s.size, 3200, 7400) * (1 + 0.15 * np.sin(2 * np.pi * s.pick(0.2, 0.6) * s.time))
    drops = s.rng.random(s.size) < s.pick(150, 300) / s.rate
    s.wave += np.convolve(drops * s.rng.uniform(1, 4, s.size), s.noise(64, 2500, 7000), mode="same") * 0.5


def _knock(s: _Sketch) -> None:
    body = s.pick(170, 240)
    for at in s.beats(s.pick(0.2, 0.28), 0.08):
        t = s.span(0.12)
        thump = np.sin(2 * np.pi * body * t) + 0.7 * np.sin(2 * np.pi * body * 2.3 * t)
        s.add(
            at,
            s.pick(0.8, 1)
            * (thump * np.exp(-t / 0.025) + 0.4 * s.noise(len(t), 200, 900) * np.exp(-t / 0.006)),
        )


def _clock(s: _Sketch) -> None:
    high = s.pick(2600, 3200)
    for beat, at in enumerate(s.beats(s.pick(0.3, 0.45), 0.0)):
        t = s.span(0.03)
        tone = high * (1.0 if beat % 2 else 0.8)
        click = np.sin(2 * np.pi * tone * t) + 0.6 * np.sin(2 * np.pi * tone * 1.83 * t)
        s.add(at, (click + s.noise(len(t), 1500, 6500)) * np.exp(-t / 0.004))


def _whistle(s: _Sketch) -> None:
    tone = s.pick(1800, 2200) * (1 + 0.02 * np.sin(2 * np.pi * s.pick(5, 7) * s.time))
    tone = tone * (1 + 0.06 * np.sin(2 * np.pi * s.pick(0.3, 0.7) * s.time))
    s.wave += np.sin(_phase(tone, s.rate)) + 0.03 * s.noise(s.size, 1500, 3000)


def _buzzer(s: _Sketch) -> None:
    base = s.pick(140, 175)
    for k in range(1, 40, 2):
        if base * k < 6500:
            s.wave += np.sin(2 * np.pi * base * k * s.time) / k**0.4
    s.wave *= 1 + 0.2 * np.sin(2 * np.pi * 50 * s.time)


def _drops(s: _Sketch) -> None:
    for at in s.beats(s.pick(0.22, 0.34), 0.3):
        t = s.span(0.09)
        sweep = s.pick(650, 900) * np.exp(t / 0.09 * s.pick(0.7, 1.0))
        s.add(
            at, s.pick(0.6, 1) * np.sin(_phase(sweep, s.rate)) * np.exp(-t / 0.025) * np.minimum(t / 0.004, 1)
        )


def _footsteps(s: _Sketch) -> None:
    low = s.pick(900, 1200)
    for at in s.beats(s.pick(0.42, 0.55), 0.05):
        t = s.span(0.24)
        grains = s.rng.random(len(t)) ** 6
        s.add(at, s.pick(0.8, 1) * s.noise(len(t), low, 3800) * (0.3 + 3 * grains) * _arch(len(t), 0.35))


def _phone(s: _Sketch) -> None:
    low, speed = s.pick(1050, 1150), s.pick(11, 14)
    warble = np.where(np.sin(2 * np.pi * speed * s.time) > 0, low, low * 1.35)
    phase = _phase(warble, s.rate)
    s.wave += (np.sin(phase) + 0.6 * np.sin(3 * phase)) * (np.mod(s.time, 0.8) < 0.55)


def _thunder(s: _Sketch) -> None:
    s.wave += s.noise(s.size, 25, 90)
    s.wave *= s.curve(0.35, 0.5, 1.6)
    for at in s.beats(s.pick(1.2, 2.0), 0.2):
        t = s.span(0.8)
        s.add(at, 1.2 * s.noise(len(t), 40, 220) * np.exp(-t / 0.2))


def _wind(s: _Sketch) -> None:
    gusts = s.curve(0.7, 0.55, 1.3)
    s.wave += s.noise(s.size, 280, 650) * gusts
    howl = s.pick(430, 520) * (0.75 + 0.25 * gusts)
    s.wave += 0.5 * np.sin(_phase(howl, s.rate)) * gusts


def _cricket(s: _Sketch) -> None:
    tone, speed = s.pick(6000, 6600), s.pick(22, 30)
    pulse = np.clip(np.sin(2 * np.pi * speed * s.time), 0, 1) * (np.mod(s.time, 0.5) < s.pick(0.28, 0.38))
    s.wave += np.sin(2 * np.pi * tone * s.time) * pulse


def _alarm(s: _Sketch) -> None:
    tone, speed = s.pick(2900, 3300), s.pick(3.2, 4.4)
    on = np.mod(s.time * speed, 1) < 0.55
    s.wave += (np.sin(2 * np.pi * tone * s.time) + 0.3 * np.sin(4 * np.pi * tone * s.time)) * on


def _helicopter(s: _Sketch) -> None:
    speed = s.pick(11, 14)
    chop = (
        np.maximum(np.sin(np.pi * speed * s.time), 0) ** 2
        + np.maximum(-np.sin(np.pi * speed * s.time), 0) ** 2
    )
    s.wave += s.noise(s.size, 90, 1400) * (0.08 + chop**3)


def _frog(s: _Sketch) -> None:
    base = s.pick(700, 850)
    for at in s.beats(s.pick(0.4, 0.55), 0.08):
        t = s.span(s.pick(0.24, 0.3))
        croak = np.clip(np.sin(2 * np.pi * s.pick(55, 70) * t), 0, 1) ** 2
        voice = np.sin(2 * np.pi * base * t) + 0.8 * np.sin(2 * np.pi * base * 2.1 * t)
        s.add(at, voice * croak * _arch(len(t), 0.2))


def _applause(s: _Sketch) -> None:
    for at in np.sort(s.rng.uniform(0, s.size / s.rate, round(s.pick(45, 70) * s.size / s.rate))):
        t = s.span(0.02)
        s.add(float(at), s.pick(0.3, 1) * s.noise(len(t), 900, 2400) * np.exp(-t / 0.006))


_DRAW: dict[str, Callable[[_Sketch], None]] = {
    "bell": _bell,
    "siren": _siren,
    "dog": _dog,
    "bird": _bird,
    "engine": _engine,
    "rain": _rain,
    "knock": _knock,
    "clock": _clock,
    "whistle": _whistle,
    "buzzer": _buzzer,
    "drops": _drops,
    "footsteps": _footsteps,
    "phone": _phone,
    "thunder": _thunder,
    "wind": _wind,
    "cricket": _cricket,
    "alarm": _alarm,
    "helicopter": _helicopter,
    "frog": _frog,
    "applause": _applause,
}

REVISION = 1  # to be raised when a sound or a sentence changes
KINDS: tuple[str, ...] = tuple(_DRAW)


def clip_name(kind: str, number: int) -> str:
    """File name of clip `number` (from 0) of `kind`."""
    return f"{kind}-{number:02d}.flac"


def render(kind: str, seed: Sequence[int], *, rate: int = 16_000, seconds: float | None = None) -> Samples:
    """One clip of `kind`: float32 samples of shape `(n,)`, peak 0.7, faded over 10 ms at both ends.

    `seed` (whole numbers) decides everything; the length is drawn from 2 to 12 s in steps of 0.1 s
    unless `seconds` is given. Raises `AmrctlError` for an unknown kind, a rate below 16 kHz or a
    length outside 0.1 to 12 s.
    """
    if kind not in _DRAW:
        raise AmrctlError(f"the sound bank has no '{kind}'{near(kind, list(KINDS))}")
    if rate < _LOWEST_RATE:
        raise AmrctlError(f"the sound bank needs a rate of at least {_LOWEST_RATE} Hz, not {rate}")
    if seconds is not None and not 0.1 <= seconds <= LONGEST:
        raise AmrctlError(f"a clip of the sound bank lasts 0.1 to {LONGEST:g} s, not {seconds:g}")
    rng = np.random.default_rng([zlib.crc32(kind.encode()), *seed])
    drawn = round(float(rng.uniform(SHORTEST, LONGEST)), 1)
    sketch = _Sketch(rng, rate, drawn if seconds is None else seconds)
    _DRAW[kind](sketch)
    edge = np.minimum(np.arange(sketch.size) + 1, np.arange(sketch.size, 0, -1)) / (0.01 * rate)
    wave = sketch.wave * np.minimum(edge, 1.0)
    return np.asarray(0.7 * wave / np.abs(wave).max(), dtype=np.float32)


def write_bank(
    folder: Path | str,
    *,
    clips_per_kind: int = 12,
    seed: int = 0,
    rate: int = 16_000,
    kinds: Sequence[str] = KINDS,
    splits: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Render the bank into `folder`: `<kind>-<n>.flac` and `captions.csv`, whose path is returned.

    The columns are `file,caption,event`, one row per caption, and `split` when `splits` (name to
    fraction, sum 1) is given: every kind's clips are then divided in these proportions, as
    `synth` divides clips. Raises `OutputError` when `folder` exists (without `overwrite`) and
    `AmrctlError` for unknown kinds or impossible numbers.
    """
    if clips_per_kind < 1:
        raise AmrctlError(f"the sound bank needs at least one clip of each kind, not {clips_per_kind}")
    names = [(kind, clip_name(kind, number)) for kind in kinds for number in range(clips_per_kind)]
    split_of = divide(names, splits, seed) if splits else {}
    import soundfile

    with writing_folder(folder, overwrite=overwrite) as temporary:
        with open(temporary / "captions.csv", "w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(["file", "caption", "event", *(["split"] if splits else [])])
            for kind, file in names:
                for caption in CAPTIONS[kind]:
                    rows.writerow([file, caption, kind, *([split_of[file]] if splits else [])])
        for index, (kind, file) in enumerate(names):
            samples = render(kind, [seed, index % clips_per_kind], rate=rate)
            soundfile.write(temporary / file, samples, rate, format="FLAC", subtype="PCM_16")
    return Path(folder) / "captions.csv"
