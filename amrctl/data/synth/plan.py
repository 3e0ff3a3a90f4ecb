"""What lies where in every recording, decided before a sample is mixed.

Each recording draws from its own generator, seeded with (seed, split, index): any worker can make
any recording, in any order, with the same result.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amrctl import spans
from amrctl.data.synth.pool import Clip, SplitPool
from amrctl.data.synth.settings import SynthSettings
from amrctl.errors import AmrctlError

_TRIES = 200  # drawings of one recording's events before giving up on fitting them in
_CLOTHO_GAP = 30.0  # seconds, mean of the exponential gaps
_CLOTHO_BACKGROUND = (-25.0, -15.0)  # dB, gain of the background
_CLOTHO_SOUND = (-5.0, 5.0)  # dB, the sound's peak against the root mean square of the unscaled background
_NOISE_LEVEL = (-30.0, -30.0)  # dB below full scale, where nothing else is said
Windows = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """One occurrence: clip, start and end of its moment (seconds), and its level (dB).

    `level` is the signal-to-noise ratio over the span, or, with the levels "peak", the sound's
    peak against the root mean square of the background before its gain.
    """

    clip: Clip
    start: float
    end: float
    level: float


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: the sentence and its moments in seconds, sorted, disjoint."""

    event: str
    sentence: str
    windows: Windows


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """Everything about one recording. `background` is a file, or None for noise of `colour`."""

    vid: str
    split: str
    index: int
    duration: float
    background: Path | None
    background_start: float
    colour: str
    background_level: float | None
    events: tuple[Placed, ...]
    queries: tuple[Asked, ...]


def generator(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one recording; purpose 0: plan, 1: noise."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, purpose])


def event_counts(settings: SynthSettings, split: str, recordings: int, queries: int | None) -> list[int]:
    """Different events of each recording of a split, shape `(recordings,)`.

    Drawn evenly from `events_per_recording`; if `queries` is given, single recordings drawn at
    random then gain or lose one until the sum is exact. All 0 where exponential gaps decide.
    """
    if settings.placement == "exponential":
        return [0] * recordings
    low, high = settings.events_per_recording
    rng = np.random.default_rng([settings.seed, zlib.crc32(split.encode()), 7_003])
    counts = rng.integers(low, high + 1, size=recordings)
    while queries is not None and (missing := queries - int(counts.sum())):
        step = 1 if missing > 0 else -1
        able = np.flatnonzero(counts < high if step > 0 else counts > low)
        counts[rng.permutation(able)[: abs(missing)]] += step
    return [int(count) for count in counts]


def background_windows(
    pool: SplitPool, seconds_of: Callable[[Path], float], settings: SynthSettings, split: str, recordings: int
) -> list[tuple[Path, float]]:
    """Clotho-Moment's backgrounds: windows of the recordings' length that start every second.

    Drawn without putting back until all have been used. Shape `(recordings,)`.
    """
    length = settings.length[1]
    windows = [
        (path, float(start))
        for group in pool.backgrounds
        for path in group
        for start in range(int(max(0.0, seconds_of(path) - length)) + 1)
    ]
    rng = np.random.default_rng([settings.seed, zlib.crc32(split.encode()), 7_004])
    drawn: list[tuple[Path, float]] = []
    while len(drawn) < recordings:
        drawn += [windows[i] for i in rng.permutation(len(windows))[: recordings - len(drawn)]]
    return drawn


def _grid(settings: SynthSettings) -> float:
    return 1.0 if settings.snap else 0.1


def _occupied(seconds: float, settings: SynthSettings) -> int:
    """Grid steps that a sound's moment takes: at least 1, to the nearest step."""
    return max(1, round(seconds / _grid(settings)))


def _spaced(rng: np.random.Generator, sizes: list[int], room: int, gap: int) -> list[int] | None:
    """Random starts for pieces of `sizes` in `room` steps, at least `gap` apart; None: no room."""
    slack = room - sum(sizes) - gap * (len(sizes) - 1)
    if slack < 0:
        return None
    offsets = np.sort(rng.integers(0, slack + 1, size=len(sizes)))
    starts, at = [0] * len(sizes), 0
    for offset, piece in zip(offsets.tolist(), rng.permutation(len(sizes)).tolist(), strict=True):
        starts[piece] = offset + at
        at += sizes[piece] + gap
    return starts


def _draw_events(
    rng: np.random.Generator, pool: SplitPool, settings: SynthSettings, count: int
) -> list[Clip]:
    """The occurrences of one recording: `count` different events, each once or several times."""
    names = list(pool.events)
    drawn: list[Clip] = []
    for i in rng.choice(len(names), size=count, replace=False):
        members = pool.events[names[i]]
        times = int(rng.integers(settings.repeats[0], settings.repeats[1] + 1))
        order: list[int] = []
        while len(order) < times:  # another clip of the event each time, as long as there is one
            order += [members[j] for j in rng.permutation(len(members))]
        drawn += [pool.clips[j] for j in order[:times]]
    return drawn


def _random_places(
    rng: np.random.Generator,
    pool: SplitPool,
    settings: SynthSettings,
    count: int,
    duration: float,
    seconds_of: Callable[[Clip], float],
) -> list[tuple[Clip, float, float]] | None:
    step = _grid(settings)
    room = int(duration / step + 1e-6)
    clips = _draw_events(rng, pool, settings, count)
    lengths = [seconds_of(clip) for clip in clips]
    sizes = [_occupied(seconds, settings) for seconds in lengths]
    if min(lengths, default=1.0) <= 0 or max(sizes, default=0) > room:
        return None
    if settings.overlap:
        starts: list[int] | None = [int(rng.integers(0, room - size + 1)) for size in sizes]
    else:
        starts = _spaced(rng, sizes, room, math.ceil(settings.gap / step - 1e-9))
    if starts is None:
        return None
    return [
        (clip, round(start * step, 1), round((start + size) * step, 1))
        for clip, start, size in zip(clips, starts, sizes, strict=True)
    ]


def _exponential_places(
    rng: np.random.Generator, pool: SplitPool, duration: float, seconds_of: Callable[[Clip], float]
) -> list[tuple[Clip, float, float]]:
    """Clotho-Moment: shuffled sounds, an exponential gap before each, until one would not end in time."""
    found: list[tuple[Clip, float, float]] = []
    at = 0.0
    used: set[int] = set()
    while len(used) < len(pool.clips):
        index = int(rng.integers(len(pool.clips)))  # a shuffle, drawn as far as it is needed
        if index in used:
            continue
        used.add(index)
        clip = pool.clips[index]
        seconds = seconds_of(clip)
        if seconds <= 0:
            continue
        at += float(rng.exponential(_CLOTHO_GAP))
        if at + seconds > duration:
            break
        start = min(round(at, 1), int((duration - seconds) * 10) / 10)
        found.append((clip, start, round(start + seconds, 1)))
        at += seconds
    return found


def _ask(rng: np.random.Generator, events: list[Placed]) -> tuple[Asked, ...]:
    """One query for each event, by first start; every occurrence is one of its moments."""
    by_event: dict[str, list[Placed]] = {}
    for placed in sorted(events, key=lambda p: (p.start, p.end)):
        by_event.setdefault(placed.clip.event, []).append(placed)
    asked = []
    for event, occurrences in by_event.items():
        # a sentence that all the clips share, if there is one
        lists = [placed.clip.captions for placed in occurrences]
        common = [text for text in lists[0] if all(text in other for other in lists)]
        every = common or list(dict.fromkeys(text for texts in lists for text in texts))
        windows = spans.merge([(p.start, p.end) for p in occurrences])
        asked.append(
            Asked(event, every[int(rng.integers(len(every)))], tuple((a, b) for a, b in windows.tolist()))
        )
    return tuple(asked)


@dataclass(frozen=True)
class Planner:
    """Plans single recordings; small enough to be sent to worker processes.

    `counts`: split → different events of each recording. `windows`: split → background windows
    (Clotho-Moment with recorded backgrounds only). `background_seconds`: file → length.
    """

    settings: SynthSettings
    pools: Mapping[str, SplitPool]
    counts: Mapping[str, list[int]]
    windows: Mapping[str, list[tuple[Path, float]]]
    background_seconds: Mapping[Path, float]

    def plan(self, split: str, index: int, seconds_of: Callable[[Clip], float]) -> RecordingPlan:
        """The plan of recording `index` (from 0) of `split`; `seconds_of` gives a clip's length
        in seconds, 0 for one that must not be used.

        Raises `AmrctlError` when the events do not fit into the recording.
        """
        s, pool = self.settings, self.pools[split]
        rng = generator(s.seed, split, index, 0)
        digits = max(4, len(str(len(self.counts[split]))))
        vid = "-".join([s.prefix, *([split] if split else []), f"{index + 1:0{digits}d}"])
        duration = float(rng.uniform(*s.length)) if s.length[1] > s.length[0] else s.length[0]
        whole = all(value.is_integer() for value in map(float, s.length))
        duration = round(duration) if whole else round(duration, 1)
        background, start = None, 0.0
        if pool.backgrounds and split in self.windows:
            background, start = self.windows[split][index]
        elif pool.backgrounds:
            group = pool.backgrounds[int(rng.integers(len(pool.backgrounds)))]
            background = group[int(rng.integers(len(group)))]
            start = float(rng.uniform(0, max(0.0, self.background_seconds[background] - duration)))
        colour = s.noise[int(rng.integers(len(s.noise)))]
        levels = _CLOTHO_BACKGROUND if s.levels == "peak" else s.background_level
        if levels is None and background is None:
            levels = _NOISE_LEVEL
        level = float(rng.uniform(*levels)) if levels is not None else None
        events = self._events(rng, split, index, float(duration), vid, seconds_of)
        return RecordingPlan(
            vid,
            split,
            index,
            float(duration),
            background,
            start,
            colour,
            level,
            tuple(events),
            _ask(rng, events),
        )

    def _events(
        self,
        rng: np.random.Generator,
        split: str,
        index: int,
        duration: float,
        vid: str,
        seconds_of: Callable[[Clip], float],
    ) -> list[Placed]:
        s, pool = self.settings, self.pools[split]
        places: list[tuple[Clip, float, float]] | None = None
        if s.placement == "exponential":
            places = _exponential_places(rng, pool, duration, seconds_of)
        else:
            count = self.counts[split][index]
            for _ in range(_TRIES):
                places = _random_places(rng, pool, s, count, duration, seconds_of)
                if places is not None:
                    break
            if places is None:
                raise AmrctlError(
                    f"recording {vid}: {count} events do not fit into {duration:g} s; give a longer "
                    "--length, a shorter --max-event, fewer --events-per-recording or --repeats, or --overlap"
                )
        low, high = _CLOTHO_SOUND if s.levels == "peak" else s.snr
        return [
            Placed(clip, start, end, float(rng.uniform(low, high)))
            for clip, start, end in sorted(places, key=lambda place: (place[1], place[2]))
        ]
