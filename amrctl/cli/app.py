"""The `amrctl` command: finds the verbs, turns users' mistakes into one line and exit code 2."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from amrctl import __version__, launch
from amrctl.cli import _argv
from amrctl.errors import AmrctlError

# The order of `amrctl --help`: the order in which the data flows. A verb is a module of this
# package with the function `run`; its file is the verb with "_" for "-".
VERBS = (
    "demo",
    "synth",
    "extract-tef",
    "pretrain",
    "finetune",
    "distill",
    "soup",
    "predict",
    "fuse",
    "rerank",
    "evaluate",
    "submit",
    "index",
    "search",
    "recipes",
    "convert",
    "inspect",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"amrctl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Audio moment retrieval: sound files and sentences in, challenge files out."""


def build(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The command with these verbs; each costs the import of its module."""
    app = typer.Typer(
        name="amrctl",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    for verb in verbs:
        module = importlib.import_module(f"amrctl.cli.{verb.replace('-', '_')}")
        app.command(verb)(module.run)
    return app


def _named(arguments: Sequence[str]) -> str:
    """The verb of a command line, "" if it names none."""
    first = next((word for word in arguments if not word.startswith("-")), "")
    return first if first in VERBS else ""


def _run(arguments: Sequence[str], **how: Any) -> Any:
    """Run a command line; only the verb that it names is imported, all of them if it names none."""
    verb = _named(arguments)
    return build([verb] if verb else VERBS)(_argv.spread(arguments), prog_name="amrctl", **how)


def call(arguments: list[str]) -> None:
    """Run one command in this process; errors are raised, not printed. `demo` uses it."""
    before = sys.argv
    sys.argv = ["amrctl", *arguments]  # what the files that it writes name as their command
    try:
        code = _run(arguments, standalone_mode=False)
    finally:
        sys.argv = before
    if code:
        raise AmrctlError(f"amrctl {' '.join(arguments)}: ended with exit code {code}")


def main() -> None:
    """Entry point of the console script."""
    # read when torch loads: its threads spin a fifteenth of what they would before they sleep, which
    # costs nothing on an idle machine and saves several times the step's time on a busy one
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the screen cannot show is no fault
    try:
        ranks = launch.from_environment()
        if ranks.several:  # torch warns in C++ when a network uses all its parameters, which is no fault
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with launch.quiet(ranks):
            if named := _named(sys.argv[1:]):
                launch.check(ranks, named)
            _run(sys.argv[1:])
    except AmrctlError as error:
        print(f"amrctl: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("amrctl: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
