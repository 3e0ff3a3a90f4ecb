"""What can be chosen in a synthesis, the two published designs, and how choices are written.

Sources: Clotho-Moment (Munakata et al., "Language-based audio moment retrieval", ICASSP 2025, and
the generator published with it) and the 5-minute set of the Yokohama report (DCASE 2026 Task 6,
section 5, Table 1). What the sources leave open is marked "ours" here and in the docs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrctl.data.splits import shares
from amrctl.errors import AmrctlError, near

BUILTIN = "builtin"
NOISES = ("white", "pink", "brown", "blue", "none")
TRIMS = ("silence", "blocks", "none")
PLACEMENTS = ("random", "exponential")
LEVELS = ("snr", "peak")
Range = tuple[float, float]


@dataclass(frozen=True)
class SynthSettings:
    """All choices of one synthesis; times in seconds, levels in dB. `check` says what is wrong.

    events: folder of event clips, or "builtin" for the embedded sound bank.
    captions: lists of clips (see `data.captions`); () means EVENTS/captions.csv.
    backgrounds: folder of background recordings, or None for generated noise of the colours `noise`.
    length: of the recordings, drawn evenly. events_per_recording: different events (= queries).
    repeats: occurrences of one event in a recording. snr: energy of the event against the background
    over the event's span. background_level: root mean square of generated and recorded backgrounds,
    dB of full scale; None leaves recorded backgrounds as they are.
    gap: least distance between two occurrences when they must not overlap.
    min_event, max_event: shorter clips are repeated end to end, longer ones are cut.
    snap: occurrences on whole seconds. queries: exact number, in all or by split.
    """

    events: str
    captions: tuple[str, ...] = ()
    captions_format: str = "auto"
    exclude: tuple[str, ...] = ()
    skip_bad: bool = False
    clips_per_kind: int = 12
    recordings: int = 100
    length: Range = (60.0, 60.0)
    events_per_recording: tuple[int, int] = (1, 4)
    repeats: tuple[int, int] = (1, 1)
    snr: Range = (5.0, 20.0)
    overlap: bool = False
    gap: float = 0.5
    fade: float = 0.01
    trim: str = "silence"
    min_event: float = 0.0
    max_event: float = 30.0
    snap: bool = False
    rate: int = 16_000
    backgrounds: str | None = None
    noise: tuple[str, ...] = ("white", "pink", "brown")
    background_level: Range | None = (-40.0, -30.0)
    placement: str = "random"  # "exponential", "peak": those of Clotho-Moment
    levels: str = "snr"
    splits: Mapping[str, float] = field(default_factory=dict)
    queries: Mapping[str, int] = field(default_factory=dict)  # split → number; "" = all recordings together
    prefix: str = "synth"
    seed: int = 0

    def check(self) -> None:
        """Raise `AmrctlError`, one line, for the first choice that cannot be."""
        for name, known in (("trim", TRIMS), ("placement", PLACEMENTS), ("levels", LEVELS)):
            if getattr(self, name) not in known:
                raise AmrctlError(
                    f"no {name} is called '{getattr(self, name)}'{near(getattr(self, name), list(known))}"
                )
        for colour in self.noise:
            if colour not in NOISES:
                raise AmrctlError(f"no noise is called '{colour}'{near(colour, list(NOISES))}")
        if not self.noise:
            raise AmrctlError(f"--noise is empty; there is: {', '.join(NOISES)}")
        for name in ("recordings", "clips_per_kind"):
            if getattr(self, name) < 1:
                raise AmrctlError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("length", "events_per_recording", "repeats", "snr", "background_level"):
            pair = getattr(self, name)
            if pair is not None and not (pair[0] <= pair[1] and all(map(math.isfinite, pair))):
                raise AmrctlError(f"--{name.replace('_', '-')}: {pair[0]:g} to {pair[1]:g} is no range")
        for name, value, low, high in (
            ("--length", self.length[0], 1, 86_400),
            ("--length", self.length[1], 1, 86_400),
            ("--events-per-recording", self.events_per_recording[0], 0, 1_000),
            ("--events-per-recording", self.events_per_recording[1], 1, 1_000),
            ("--repeats", self.repeats[0], 1, 1_000),
            ("--rate", self.rate, 16_000 if self.events == BUILTIN else 1_000, 192_000),
            ("--gap", self.gap, 0, 3_600),
            ("--fade", self.fade, 0, 10),
            ("--min-event", self.min_event, 0, 3_600),
            ("--max-event", self.max_event, 0.1, 3_600),
            ("--seed", self.seed, 0, 2**63),
        ):
            if not low <= value <= high:
                raise AmrctlError(f"{name} must be between {low:g} and {high:g}, not {value:g}")
        for name in ("captions", "exclude"):
            if self.events == BUILTIN and getattr(self, name):
                raise AmrctlError(
                    f"--{name} does not go with --events {BUILTIN}, which brings its own captions"
                )
        if self.min_event > self.max_event:
            raise AmrctlError(f"--min-event {self.min_event:g} is more than --max-event {self.max_event:g}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.prefix):
            raise AmrctlError(f"--prefix '{self.prefix}': use letters, digits, '.', '_' and '-'")
        self._check_splits()

    def _check_splits(self) -> None:
        for name, share in self.splits.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in ("recordings", "synth"):
                raise AmrctlError(f"--splits: '{name}' cannot be the name of a split")
            if not (math.isfinite(share) and share > 0):
                raise AmrctlError(f"--splits: the fraction of {name} must be above 0, not {share:g}")
        total = sum(self.splits.values())
        if self.splits and abs(total - 1) > 1e-6:
            raise AmrctlError(f"--splits: the fractions sum to {total:g}, not to 1")
        for name in self.queries:
            if name and name not in self.splits:
                raise AmrctlError(f"--queries: no split is called '{name}'{near(name, list(self.splits))}")
        for name, count in self.counts().items():
            if count == 0:
                raise AmrctlError(
                    f"--recordings {self.recordings}: split '{name}' gets none; "
                    "ask for more or raise its fraction"
                )
        low, high = self.events_per_recording
        for name, wanted in self.query_counts().items():
            count = self.counts()[name]
            if wanted is not None and not low * count <= wanted <= high * count:
                raise AmrctlError(
                    f"--queries: {wanted} queries in {count} recordings{f' of {name}' if name else ''} need "
                    f"{wanted / count:.3g} events each, outside --events-per-recording {low}-{high}"
                )

    def counts(self) -> dict[str, int]:
        """Recordings of each split; without splits the one split is called ""."""
        return shares(self.recordings, dict(self.splits) or {"": 1.0})

    def query_counts(self) -> dict[str, int | None]:
        """Queries of each split where a number was asked for, else None."""
        counts = self.counts()
        if "" in self.queries and "" not in counts:
            total = self.queries[""]
            return dict(shares(total, {name: n / self.recordings for name, n in counts.items()}))
        return {name: self.queries.get(name) for name in counts}

    def to_json(self) -> dict[str, Any]:
        """The choices as JSON values."""
        return {key: dict(v) if isinstance(v, Mapping) else v for key, v in vars(self).items()}


# Published numbers: recordings (and queries) by split.
_CLOTHO = {"train": 37_930, "val": 5_741, "test": 7_569}
_FIVE = {"train": (5_000, 14_385), "val": (500, 1_414)}

PRESETS: dict[str, dict[str, Any]] = {
    # Window of 60 s; sounds trimmed by 1-s blocks to whole seconds (at most 30); gaps of 30 s on
    # average, no overlap; sound peak 10 to 30 dB above the background's root mean square.
    "clotho-moment": {
        "recordings": sum(_CLOTHO.values()),
        "splits": {name: count / sum(_CLOTHO.values()) for name, count in _CLOTHO.items()},
        "length": (60.0, 60.0),
        "events_per_recording": (0, 1_000),
        "overlap": False,
        "placement": "exponential",
        "levels": "peak",
        "trim": "blocks",
        "fade": 0.0,
        "gap": 0.0,
        "max_event": 30.0,
        "rate": 32_000,
        "background_level": None,
    },
    # Given by the paper: counts, 300 s, 1 to 5 events, random placement. Ours: SNR, trimming,
    # longest event, no overlap, fades, rate.
    "five-minute": {
        "recordings": sum(r for r, _ in _FIVE.values()),
        "splits": {name: r / sum(n for n, _ in _FIVE.values()) for name, (r, _) in _FIVE.items()},
        "length": (300.0, 300.0),
        "events_per_recording": (1, 5),
        "snr": (5.0, 20.0),
        "max_event": 30.0,
        "rate": 32_000,
        "background_level": None,
    },
}


def with_preset(preset: str | None, choices: Mapping[str, Any]) -> SynthSettings:
    """Settings from a preset (or None) with `choices` on top, checked.

    An `snr` chosen replaces the preset's way of setting levels. The five-minute set keeps its
    published number of queries per recording when another number of
    recordings or other splits are asked for, unless `queries` is chosen too.
    Raises `AmrctlError` for an unknown preset or an impossible choice.
    """
    if preset is not None and preset not in PRESETS:
        raise AmrctlError(f"no preset is called '{preset}'{near(preset, list(PRESETS))}")
    values = {**(PRESETS[preset] if preset else {}), **choices}
    if "snr" in choices:
        values["levels"] = "snr"
    if values.get("placement") == "exponential":
        for name in ("events_per_recording", "repeats", "overlap", "gap", "snap", "queries"):
            if name in choices:
                raise AmrctlError(
                    f"--{name.replace('_', '-')} does not go with the preset clotho-moment, whose design "
                    "draws the gaps and with them the number of events; leave it out"
                )
    if values.get("levels") == "peak" and "background_level" in choices:
        raise AmrctlError("--background-level does not go with the preset clotho-moment; with --snr it does")
    settings = SynthSettings(**values)
    if preset == "five-minute" and not settings.queries and "events_per_recording" not in choices:
        every = sum(q for _, q in _FIVE.values()) / sum(r for r, _ in _FIVE.values())
        ratio = {name: q / r for name, (r, q) in _FIVE.items()}
        counts = settings.counts()
        wanted = {name: max(n, round(n * ratio.get(name, every))) for name, n in counts.items()}
        settings = dataclasses.replace(settings, queries=wanted)
    settings.check()
    return settings


def parse_range(option: str, text: str, *, whole: bool = False) -> tuple[float, float]:
    """`60` or `30-90` or `-5-10` → (low, high). Raises `AmrctlError` naming `option`."""
    number = r"[+-]?(?:\d+\.?\d*|\.\d+)"
    match = re.fullmatch(rf"\s*({number})(?:\s*(?:-|to|,|:)\s*({number}))?\s*", text)
    if match is None or (whole and "." in text):
        kind = "whole numbers" if whole else "a number or a range"
        raise AmrctlError(f"{option} {text}: write {kind}, as 5 or 3-8")
    low, high = match.group(1), match.group(2) or match.group(1)
    return (int(low), int(high)) if whole else (float(low), float(high))


def parse_shares(option: str, text: str) -> dict[str, float]:
    """`train=0.8,val=0.1,test=0.1` → name to number. Raises `AmrctlError` naming `option`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not name or not equals or not math.isfinite(share):
            raise AmrctlError(f"{option} {text}: write name=number with commas between, as train=0.8,val=0.2")
        if name in found:
            raise AmrctlError(f"{option} {text}: '{name}' is there twice")
        found[name] = share
    return found


def parse_queries(text: str) -> dict[str, int]:
    """`1000`, or `train=800,val=200` → split to number ("" = all together)."""
    if text.strip().isdigit():
        return {"": int(text)}
    return {name: whole_number("--queries", value) for name, value in parse_shares("--queries", text).items()}


def whole_number(option: str, value: float) -> int:
    """Return `value` as int; raise `AmrctlError` when it is not a whole number, or negative."""
    if not float(value).is_integer() or value < 0:
        raise AmrctlError(f"{option}: {value:g} is not a whole number")
    return int(value)


def captions_of(settings: SynthSettings) -> tuple[Path, ...]:
    """The lists of clips: as chosen, else `captions.csv` in the folder of events."""
    if settings.captions:
        return tuple(Path(path) for path in settings.captions)
    return (Path(settings.events) / "captions.csv",)
