"""What the command says about itself: quickly, for every verb, and with one meaning for one name."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo

import amrctl
from amrctl.cli import _argv, _options
from amrctl.cli.app import VERBS
from tests.conftest import Cli

HEAVY = ("torch", "numpy", "h5py", "scipy", "soundfile", "soxr", "matplotlib", "safetensors")
# Names that stand for the same thing wherever they appear: the alias that defines them.
SHARED: dict[str, Any] = {
    "--overwrite": _options.Overwrite,
    "--json": _options.Json,
    "--quiet": _options.Quiet,
    "--verbose": _options.Verbose,
    "--device": _options.Device,
    "--precision": _options.Precision,
    "--features": _options.Features,
    "--set": _options.Sets,
    "--clip-windows": _options.ClipWindows,
}


@dataclass(frozen=True)
class Parameter:
    """One option or argument of a verb, as its function declares it."""

    verb: str
    names: tuple[str, ...]  # none: positional
    type: str
    info: Any


def of_alias(alias: Any) -> tuple[str, Any]:
    return str(alias.__origin__), alias.__metadata__[0]


def parameters(verb: str) -> Iterator[Parameter]:
    run = importlib.import_module(f"amrctl.cli.{verb.replace('-', '_')}").run
    for name, hint in get_type_hints(run, include_extras=True).items():
        if name == "return":
            continue
        kind, info = of_alias(hint)
        assert isinstance(info, (OptionInfo, ArgumentInfo)), (verb, name)
        if isinstance(info, ArgumentInfo):
            yield Parameter(verb, (), kind, info)
        else:  # typer takes the first name for the default where it stands in Annotated
            yield Parameter(verb, (str(info.default), *(info.param_decls or ())), kind, info)


def needed(kind: str) -> str:
    """A type's name, whether it may be left out or not."""
    return kind.removesuffix(" | None").removeprefix("<class '").removesuffix("'>")


def every() -> list[Parameter]:
    return [parameter for verb in VERBS for parameter in parameters(verb)]


def as_words(text: str) -> str:
    """Help without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_option_and_gives_examples(cli: Cli, verb: str) -> None:
    for flag in ("--help", "-h"):
        done = cli(verb, flag)
        assert (done.code, done.err) == (0, "")
        told = as_words(done.out)
        assert "Examples:" in told
        assert f"amrctl {verb} " in told.split("Examples:")[1]
        for parameter in parameters(verb):
            assert parameter.info.help, parameter.names
            assert as_words(parameter.info.help) in told, (verb, parameter.names)
            for name in parameter.names:
                assert all(part in told for part in name.split("/"))


def test_the_first_help_lists_every_verb_and_what_it_does(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    told = as_words(done.out)
    assert told.index("demo ") < told.index("synth ") < told.index("submit ")
    for verb in VERBS:
        run = importlib.import_module(f"amrctl.cli.{verb.replace('-', '_')}").run
        first = as_words(run.__doc__.split("\n\n")[0].replace("`", ""))
        assert f"{verb} {first}" in told.replace("`", "")
    assert cli().out.strip() == done.out.strip()  # nothing given: the same
    version = cli("--version")
    assert (version.code, version.out) == (0, f"amrctl {amrctl.__version__}\n")


def test_one_name_one_meaning() -> None:
    seen = dict.fromkeys(SHARED, 0)
    for parameter in every():
        for name in parameter.names:
            if name not in SHARED:
                continue
            kind, alias = of_alias(SHARED[name])
            assert parameter.info.help == alias.help, (parameter.verb, name)
            bare = kind.removeprefix("<class '").removesuffix("'>")
            assert parameter.type in (kind, f"{bare} | None"), (parameter.verb, name)  # some do without it
            assert parameter.info.param_decls == alias.param_decls  # its short form too
            seen[name] += 1
    assert all(count > 1 for count in seen.values()), seen

    seed = of_alias(_options.Seed)[1].help.rstrip(".")
    for parameter in every():
        if "--seed" in parameter.names:
            assert parameter.info.help.startswith(seed), parameter.verb
        if "--out" in parameter.names:
            assert "pathlib.Path" in parameter.type
            assert "list" not in parameter.type

    # what writes to --out can be told to replace it; the demo and nothing else goes on by itself
    names = {verb: {n for p in parameters(verb) for n in p.names} for verb in VERBS}
    assert {v for v in VERBS if "--out" in names[v] and "--overwrite" not in names[v]} == {"demo"}
    assert {v for v in VERBS if not {"--json", "--quiet"} <= names[v]} == set()


def test_options_of_several_files_take_them_in_a_row_in_exactly_the_verbs_where_they_are_lists() -> None:
    lists: dict[str, set[str]] = {}
    for parameter in every():
        if parameter.names and parameter.type.startswith("list[pathlib.Path]"):
            lists.setdefault(parameter.verb, set()).add(parameter.names[0])
    assert {verb: set(options) for verb, options in _argv.SEVERAL.items()} == lists
    assert sum(map(len, lists.values())) > 8
    # the same name takes one value elsewhere, and what follows stays positional
    for typed in (
        "search --checkpoint c a.wav rain",
        "rerank --train t p.jsonl --features f",
        "evaluate --test m p.jsonl q.jsonl",
        "submit --queries q p.jsonl",
    ):
        assert _argv.spread(typed.split()) == typed.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (
            "predict --checkpoint a b --test m n -q",
            "predict --checkpoint a --checkpoint b --test m --test n -q",
        ),
        ("synth --exclude x y -q --out o", "synth --exclude x --exclude y -q --out o"),
        (
            "finetune --train a b --val c --val d e",
            "finetune --train a --train b --val c --val d --val e",
        ),
    ],
)
def test_in_a_row(typed: str, meant: str) -> None:
    assert _argv.spread(typed.split()) == meant.split()


def test_help_loads_nothing_heavy() -> None:
    """All help texts in one fresh process; the first of them tells how long one takes."""
    code = (
        "import contextlib, io, sys\n"
        "from amrctl.cli.app import VERBS, main\n"
        "for words in (['--version'], ['--help'], *([verb, '--help'] for verb in VERBS)):\n"
        "    sys.argv = ['amrctl', *words]\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "    assert out.getvalue(), words\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    def run(**env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from amrctl.cli.app import main; main()"],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.stdout

    script = run(_AMRCTL_COMPLETE=f"source_{shell}")
    assert f"complete_{shell}" in script
    assert "amrctl" in script
    words = {"_TYPER_COMPLETE_ARGS": "amrctl pre", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found = run(_AMRCTL_COMPLETE=f"complete_{shell}", COMP_WORDS="amrctl pre", COMP_CWORD="1", **words)
    assert "pretrain" in found
    assert "predict" in found
    assert "synth" not in found


def test_show_completion_names_the_shell_script(cli: Cli) -> None:
    done = cli("--help")
    assert "--show-completion" in done.out
    assert "--install-completion" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predikt"], "No such command 'predikt'"),
        (["predict", "--chekpoint", "c"], "No such option: --chekpoint"),
        (["predict"], "Missing option '--checkpoint'"),
        (["fuse", "a.jsonl", "--wbf", "--out", "o", "--keep", "many"], "Invalid value for '--keep'"),
        (["predict", "--out"], "Option '--out' requires an argument"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["search", "a.wav", "--checkpoint", "c"], "Missing argument 'SENTENCE...'"),
    ],
)
def test_slips_of_the_hand(cli: Cli, tmp_path: Path, words: list[str], message: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert message in as_words(done.err)
    assert "Traceback" not in done.err
