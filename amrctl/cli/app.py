"""The `amrctl` command: finds the verbs, turns users' mistakes into one line and exit code 2."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from amrctl import __version__
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
    "search",
    "recipes",
    "convert",
    "inspect",
)

app = typer.Typer(
    name="amrctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"amrctl {__version__}")
        raise typer.Exit


@app.callback(help="Audio moment retrieval: sound files and sentences in, challenge files out.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _verb in VERBS:
    _name = _verb.replace("-", "_")
    if not (Path(__file__).parent / f"{_name}.py").exists():
        continue
    _module = importlib.import_module(f"amrctl.cli.{_name}")
    app.command(_verb)(_module.run)


def call(arguments: list[str]) -> None:
    """Run one command in this process; errors are raised, not printed. `demo` uses it."""
    before = sys.argv
    sys.argv = ["amrctl", *arguments]  # what the files that it writes name as their command
    try:
        code = app(_argv.spread(arguments), standalone_mode=False)
    finally:
        sys.argv = before
    if code:
        raise AmrctlError(f"amrctl {' '.join(arguments)}: ended with exit code {code}")


def main() -> None:
    """Entry point of the console script."""
    # read when torch loads: threads that wait by spinning make a step several times slower as soon
    # as anything else runs on the machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(_argv.spread(sys.argv[1:]))
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
