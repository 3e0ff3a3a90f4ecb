"""Every error that a user can cause.

One root, so that the command line can turn exactly these into one line and exit code 2; anything
else is a bug and keeps its traceback. A message says what is wrong, where (file, line, id, both
numbers) and what to do.
"""

from __future__ import annotations


class AmrctlError(Exception):
    """A mistake in what the user gave us; `str(error)` is the line that is shown."""


class RecipeError(AmrctlError):
    """A recipe or a `--set` that cannot be used."""


class ManifestError(AmrctlError):
    """A manifest (queries, recordings, windows) with a fault."""


class AudioError(AmrctlError):
    """A sound file that is missing, unreadable, empty or not finite."""


class FeatureError(AmrctlError):
    """A feature file that lacks, or contradicts, what was asked of it."""


class CheckpointError(AmrctlError):
    """Weights that do not fit, or a run folder that cannot be continued."""


class PredictionError(AmrctlError):
    """A prediction file with a fault, or files that do not belong together."""


class SubmissionError(AmrctlError):
    """A challenge package that would be refused."""


class ArchiveError(AmrctlError):
    """A searchable archive that is damaged, incomplete, or made in another way than is asked for."""


class OutputError(AmrctlError):
    """A target that exists already or cannot be written."""


def near(name: str, known: list[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or the list of what there is."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is: {', '.join(sorted(known))}" if known else "; there is none"
