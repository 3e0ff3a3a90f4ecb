"""`amrctl search`: where in this recording is what the sentence says?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import Device, Json, Precision, Quiet, Sets, Verbose

if TYPE_CHECKING:
    from rich.table import Table

    from amrctl.data.predictions import Prediction
    from amrctl.pipeline.search import Found

FINE, PLAIN = "─▐▌█", "-###"  # none, the right half, the left half, all of a cell
FINE_CURVE, PLAIN_CURVE = "▁▂▃▄▅▆▇█", " .:-=+*#"


def run(
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="Any wav, flac, ogg or mp3 file.")],
    sentences: Annotated[
        list[str], typer.Argument(metavar="SENTENCE...", help="What to look for, one or more.")
    ],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Weights, or a run folder.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Moments a sentence.")] = 3,
    min_score: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Leave out moments below this score.")
    ] = 0.0,
    drop_copies: Annotated[
        float,
        typer.Option(
            "--drop-copies",
            metavar="IOU",
            min=0,
            max=1,
            help="Of moments that overlap more than this keep the best; 1: keep all.",
        ),
    ] = 0.95,
    rounding: Annotated[
        float | None,
        typer.Option(
            "--round",
            min=0,
            help="Round to multiples of this many seconds; 0: exact. Default: as the training labels were.",
        ),
    ] = None,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="Also show how well each second fits (raw numbers).")
    ] = False,
    audio_encoder: Annotated[
        list[str] | None,
        typer.Option("--audio-encoder", metavar="NAME", help="Instead of the one in the checkpoint."),
    ] = None,
    text_encoder: Annotated[
        list[str] | None,
        typer.Option("--text-encoder", metavar="NAME", help="Instead of the one in the checkpoint."),
    ] = None,
    sets: Sets = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the moments of a recording that sentences describe.

    The sound is heard with the encoders named in the checkpoint. Recordings of
    any length work; long ones are read in overlapping chunks. Scores are 0..1,
    best first: the model's own confidence, for ranking, not a calibrated
    probability. Write -- before a file name that begins with "-".

    Examples:

      amrctl search a.mp3 "a dog barks" "rain falls" --checkpoint C.safetensors

      amrctl search a.wav "rain" --checkpoint C.safetensors --min-score 0.2

      amrctl search --checkpoint C.safetensors --json -- -odd.wav "a dog barks"
    """
    import sys

    from rich.console import Console as RichConsole

    from amrctl.cli._console import Console
    from amrctl.pipeline.search import SearchRequest, search

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    found = search(
        SearchRequest(
            audio=audio,
            sentences=tuple(sentences),
            checkpoint=checkpoint,
            top=top,
            min_score=min_score,
            drop_copies=drop_copies,
            rounding=rounding,
            saliency=saliency,
            audio_encoders=tuple(audio_encoder or ()),
            text_encoders=tuple(text_encoder or ()),
            sets=tuple(sets or ()),
            device=device,
            precision=precision,
        ),
        console,
    )
    console.result(found.to_json())
    fine = _speaks(sys.stdout.encoding, FINE + FINE_CURVE)
    width = RichConsole(file=sys.stdout).width
    length = f"{clock(found.duration)} ({found.duration:.1f} s)"
    console.say(_sayable(f"{audio}: {length}, heard with {', '.join(found.encoders['audio'])}"))
    for item, best in zip(found.items, found.best, strict=True):
        console.say("")
        if len(item.windows):
            console.table(_table(found, item, width, fine))
        else:
            console.say(_sayable(f"{item.query}: nothing scores {min_score:g} or more (best {best:.3f})"))
    console.say("")
    console.say("score: 0..1, the model's own confidence; it ranks, it is not a calibrated probability")
    if saliency:
        console.say("saliency: how well each second fits; raw, only its order means something")


def _table(found: Found, item: Prediction, width: int, fine: bool) -> Table:
    from rich.table import Table as RichTable
    from rich.text import Text

    moments = item.windows.tolist()
    rows = []
    for rank, (start, end, score) in enumerate(moments, 1):
        rows.append((str(rank), f"{clock(start)}-{clock(end)}", f"{start:.1f}-{end:.1f}", f"{score:.3f}"))
    values = [] if item.saliency is None else item.saliency.tolist()
    if values:
        rows.append(("", "saliency", f"{min(values):.2f}..{max(values):.2f}", "raw"))
    heads = ("", "moment", "seconds", "score")
    taken = sum(max(len(row[i]) for row in (heads, *rows)) for i in range(4))
    cells = max(min(width - taken - 5 * 2 - 1, 72), 10)  # five columns, one blank on either side
    left, right = clock(0), clock(found.duration)
    ruler = left + right.rjust(cells - len(left)) if cells > len(left + right) else ""

    shown = RichTable(
        title=Text(_sayable(item.query)), title_justify="left", title_style="bold", box=None, padding=(0, 1)
    )
    for i, head in enumerate(heads):
        style = "dim" if i in (0, 2) else ""
        shown.add_column(head, justify="right", no_wrap=True, overflow="crop", style=style)
    shown.add_column(ruler, no_wrap=True, overflow="crop")
    lines = [bar(s, e, found.duration, cells, FINE if fine else PLAIN) for s, e, _ in moments]
    if values:
        lines.append(curve(values, found.hop, found.duration, cells, FINE_CURVE if fine else PLAIN_CURVE))
    for row, line in zip(rows, lines, strict=True):
        shown.add_row(*row, line)
    return shown


def clock(seconds: float) -> str:
    """`m:ss`, from an hour on `h:mm:ss`; fractions are cut off.

    >>> clock(59.9), clock(61), clock(3600)
    ('0:59', '1:01', '1:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(start: float, end: float, duration: float, cells: int, signs: str) -> str:
    """A recording of `duration` seconds as `cells` characters, the moment marked to half a cell.

    `signs`: a cell without the moment, with it in its right half, in its left half, in both. However
    short it is, the moment shows.
    """
    first = min(int(2 * cells * start / duration), 2 * cells - 1)
    last = max(round(2 * cells * end / duration), first + 1)
    halves = [first <= i < last for i in range(2 * cells)]
    return "".join(signs[2 * halves[i] + halves[i + 1]] for i in range(0, 2 * cells, 2))


def curve(values: Sequence[float], hop: float, duration: float, cells: int, signs: str) -> str:
    """Values one `hop` apart as `cells` characters: each shows the largest value it covers, from the
    lowest sign (the smallest value of all) to the highest."""
    step = duration / cells / hop  # values in a cell
    tops = []
    for i in range(cells):
        first = min(int(i * step), len(values) - 1)
        tops.append(max(values[first : max(int((i + 1) * step), first + 1)]))
    low, span = min(values), max(values) - min(values)
    return "".join(signs[round((top - low) / span * (len(signs) - 1)) if span else 0] for top in tops)


def _speaks(encoding: str | None, text: str) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _sayable(text: str) -> str:
    """`text` with a question mark for what the screen cannot show."""
    import sys

    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "replace").decode(encoding)
