"""What a language model is asked about a window, and which stretch of the recording it hears.

Source: Chung-Ang University, DCASE 2026 Task 6, 2.3: the window widened by 50% of its own length on
both sides, the sentence, the window's start and end within that stretch, an answer of Yes or No to
whether the window accurately covers the moment. The report does not print its prompt: the words are ours.
"""

from __future__ import annotations

# Raised with every change of the words, of the widening or of the form in which times are written: a
# new version is asked anew, the cache keeps the old answers apart.
VERSION = "1"
WIDENING = 0.5  # of the window's length, on both sides
LONGEST = 300.0  # seconds; Qwen2.5-Omni's front end cuts what is longer
YES, NO = ("Yes", "yes", "YES"), ("No", "no", "NO")

SYSTEM = "You listen to sound recordings and check statements about them."
QUESTION = (
    "The recording lasts {length} seconds. One interval of it begins at {start} seconds and ends at {end} "
    "seconds.\n"
    "Description: {query}\n"
    "Is what the description says heard in this interval, and does the interval accurately cover it from "
    "where it begins to where it ends? Answer only Yes or No."
)


def stretch(start: float, end: float, duration: float, longest: float = LONGEST) -> tuple[float, float]:
    """The seconds to hear for a window of a recording of `duration` seconds.

    Widened by half its length on both sides, as far as the recording goes and, on both sides alike,
    as far as `longest` allows; of a window that is longer than that, its first `longest` seconds.
    Raises `ValueError` when the window begins at or after the end.
    """
    end = min(end, duration)
    if not 0 <= start < end:
        raise ValueError(f"the window begins at {start:g} s, the recording ends at {duration:g} s")
    if end - start >= longest:
        return start, start + longest
    margin = min(WIDENING * (end - start), (longest - (end - start)) / 2)
    return max(0.0, start - margin), min(duration, end + margin)


def question(query: str, length: float, start: float, end: float) -> str:
    """The question about `[start, end]` of what is heard, `length` seconds; times to 0.01 s."""
    times = {"length": _seconds(length), "start": _seconds(start), "end": _seconds(end)}
    return QUESTION.format(query=" ".join(query.split()), **times)


def _seconds(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
