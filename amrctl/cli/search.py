"""`amrctl search`: where in this recording is what the sentence says?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amrctl.cli._options import Device, Json, Precision, Quiet, Sets, Verbose

if TYPE_CHECKING:
    from rich.table import Table

    from amrctl.cli._console import Console
    from amrctl.data.predictions import Prediction
    from amrctl.pipeline.search import Found

_ARCHIVE = "Over an archive"
FINE, PLAIN = "─▐▌█", "-###"  # none, the right half, the left half, all of a cell
_SCORE = "score: 0..1, the model's own confidence; it ranks, it is not a calibrated probability"
FINE_CURVE, PLAIN_CURVE = "▁▂▃▄▅▆▇█", " .:-=+*#"


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AUDIO] SENTENCE...",
            help="A wav, flac, ogg or mp3 file (not with --index), and what to look for, one or more.",
        ),
    ],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Weights, or a run folder.")],
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Moments a sentence; default: 3, with --index 10.")
    ] = None,
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
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="A.index",
            help="Search all recordings of this archive (made by index).",
            rich_help_panel=_ARCHIVE,
        ),
    ] = None,
    recordings: Annotated[
        int,
        typer.Option(
            "--recordings",
            min=1,
            help="Recordings that the detector reads for a sentence.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = 5,
    best_of: Annotated[
        int,
        typer.Option(
            "--best-of",
            min=1,
            help="A recording's score is the mean of so many best windows.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = 1,
    weight: Annotated[
        float,
        typer.Option(
            "--recording-weight",
            min=0,
            help="How much recordings' scores count in the order of moments; 0: not.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = 10.0,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Look at all windows, however many there are.", rich_help_panel=_ARCHIVE
        ),
    ] = False,
    audio_folder: Annotated[
        Path | None,
        typer.Option(
            "--audio",
            metavar="DIR",
            help="Where the recordings lie now, if they were moved.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = None,
    index_encoder: Annotated[
        str | None,
        typer.Option(
            "--index-encoder",
            metavar="NAME",
            help="Text encoder of the archive, if its weights were moved.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = None,
    cache_size: Annotated[
        float,
        typer.Option(
            "--cache-size",
            min=0,
            help="Most gigabytes of features that searches leave in the archive.",
            rich_help_panel=_ARCHIVE,
        ),
    ] = 2.0,
    sets: Sets = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    csv_mode: Annotated[
        bool, typer.Option("--csv", help="Print the moments as CSV on stdout; all else on stderr.")
    ] = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the moments of a recording, or of an archive, that sentences describe.

    The sound is heard with the encoders named in the checkpoint. Recordings of
    any length work; long ones are read in overlapping chunks. Scores are 0..1,
    best first: the model's own confidence, for ranking, not a calibrated
    probability. Write -- before a file name that begins with "-". With
    --index there is no file: every word group is a sentence, the archive finds
    the recordings, the detector the moments in the best of them.

    Examples:

      amrctl search a.mp3 "a dog barks" "rain falls" --checkpoint C.safetensors

      amrctl search a.wav "rain" --checkpoint C.safetensors --min-score 0.2

      amrctl search --checkpoint C.safetensors --json -- -odd.wav "a dog barks"

      amrctl search --index archive.index --checkpoint C.safetensors "a dog barks"
    """
    from amrctl.cli._console import Console
    from amrctl.errors import AmrctlError

    if json_mode and csv_mode:
        raise AmrctlError("--json and --csv both print the answer on stdout; choose one")
    if saliency and (index is not None or csv_mode):
        raise AmrctlError("--saliency shows the curve of one recording; leave it out with --index or --csv")
    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    common = {
        "checkpoint": checkpoint,
        "min_score": min_score,
        "drop_copies": drop_copies,
        "rounding": rounding,
        "audio_encoders": tuple(audio_encoder or ()),
        "text_encoders": tuple(text_encoder or ()),
        "sets": tuple(sets or ()),
        "device": device,
        "precision": precision,
    }
    if index is None:
        if len(words) < 2:
            raise typer.BadParameter(
                "Missing argument 'SENTENCE...': AUDIO comes first, then what to look for."
            )
        options = {**common, "top": 3 if top is None else top, "saliency": saliency}
        _one(console, Path(words[0]), tuple(words[1:]), csv_mode, options)
        return
    options = {
        **common,
        "archive": index,
        "top": 10 if top is None else top,
        "recordings": recordings,
        "best_of": best_of,
        "weight": weight,
        "exact": exact,
        "folder": audio_folder,
        "text_of_archive": index_encoder,
        "cache_bytes": round(cache_size * 1e9),
    }
    _all(console, tuple(words), csv_mode, options)


def _one(
    console: Console, audio: Path, sentences: tuple[str, ...], csv_mode: bool, options: dict[str, Any]
) -> None:
    """Search one recording and show the answer."""
    import sys

    from rich.console import Console as RichConsole

    from amrctl.pipeline.search import SearchRequest, search

    found = search(SearchRequest(audio=audio, sentences=sentences, **options), console)
    if csv_mode:
        _csv((item.query, str(audio), *row) for item in found.items for row in item.windows.tolist())
        return
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
            least = options["min_score"]
            console.say(_sayable(f"{item.query}: nothing scores {least:g} or more (best {best:.3f})"))
    console.say("")
    console.say(_SCORE)
    if options["saliency"]:
        console.say("saliency: how well each second fits; raw, only its order means something")


def _all(console: Console, sentences: tuple[str, ...], csv_mode: bool, options: dict[str, Any]) -> None:
    """Search an archive and show the answer."""
    from amrctl.cli._console import table
    from amrctl.pipeline.archive import ArchiveRequest, ArchiveSearch

    found = ArchiveSearch(ArchiveRequest(**options), console).ask(sentences)
    if csv_mode:
        _csv((a.query, m.file, m.start, m.end, m.score) for a in found.answers for m in a.moments)
        return
    console.result(found.to_json())
    heads = ("", "recording", "moment", "seconds", "score")
    console.say(
        _sayable(
            f"{found.archive}: {found.recordings:,} recordings, {found.seconds / 3600:.1f} h ({found.how})"
        )
    )
    for answer in found.answers:
        console.say("")
        if not answer.moments:
            least = options["min_score"]
            console.say(
                _sayable(f"{answer.query}: nothing scores {least:g} or more (best {answer.best:.3f})")
            )
            continue
        shown = table(*heads, title=_sayable(answer.query))
        for rank, m in enumerate(answer.moments, 1):
            cells = (f"{clock(m.start)}-{clock(m.end)}", f"{m.start:.1f}-{m.end:.1f}", f"{m.score:.3f}")
            shown.add_row(str(rank), _sayable(m.file), *cells)
        console.table(shown)
    console.say("")
    console.say(f"{_SCORE}, lowered in recordings that fit less well than the best")


def _csv(rows: Iterable[tuple[str, str, float, float, float]]) -> None:
    """Print moments, best first for each sentence, as CSV with a line of names."""
    import csv
    import sys

    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("query", "rank", "file", "start", "end", "score"))
    rank, before = 0, None
    for query, file, start, end, score in rows:
        rank = rank + 1 if query == before else 1
        before = query
        out.writerow((query, rank, file, f"{start:g}", f"{end:g}", f"{score:.6g}"))


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
