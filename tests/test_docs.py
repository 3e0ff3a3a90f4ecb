"""The documentation speaks of what exists: pages, verbs, options, files, names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from amrctl.cli.app import VERBS, build
from amrctl.errors import RecipeError
from amrctl.recipe import load_any, shipped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
# names that stand for any verb, and what docs call an option without meaning one
PLACEHOLDERS = {"VERB"}
PAGE_OF = {"index": "index-archive.md"}  # docs/index.md is the front page
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return [(found[1], found[2]) for found in FENCE.finditer(text)]


def commands(text: str) -> Iterator[str]:
    """Every `amrctl ...` command line, in fenced blocks (joined over continued lines) and inline code."""
    for language, block in blocks(text):
        if language in ("", "bash", "console", "sh"):
            # a command goes on after a backslash, or on lines that are indented deeper
            joined = re.sub(r"\\\n\s*|\n[ \t]+", " ", block)
            for line in joined.splitlines():
                found = re.match(r"\s*(?:\$ |\w+=\S+ )*(?:\S*/)?(amrctl(?:\s.*)?)$", line)
                if found:
                    yield re.split(r"\s#\s", found[1])[0]
    # one line break at most: an unpaired mark must not swallow a page
    for inline in re.findall(r"`([^`\n]+\n?[^`\n]*)`", FENCE.sub("", text)):
        if inline.startswith("amrctl "):
            yield re.sub(r"\s+", " ", inline)


def declared() -> dict[str, set[str]]:
    """Verb → its options, as the program declares them; "" holds those of `amrctl` itself."""
    group = typer.main.get_command(build())
    found = {"": spellings(group)}
    for verb, command in vars(group)["commands"].items():
        found[verb] = spellings(command)
    return found


def spellings(command: object) -> set[str]:
    """All ways to write the options of one command."""
    options = {"--help", "-h"}
    for parameter in vars(command)["params"]:
        if parameter.param_type_name == "option":
            options |= {*parameter.opts, *parameter.secondary_opts}
    return options


DECLARED = declared()


def faults(command: str) -> list[str]:
    """What in a command line is no verb or no option of its verb."""
    words = command.split()[1:]
    first = words[0] if words else ""
    verbs = [""] if first.startswith("-") or not first else first.rstrip(";,.:").split("|")
    # options are read only as far as the command goes: `amrctl search` ; `amrctl index` are two
    options = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", re.split(r"\s[;&]+\s| -- ", command)[0])
    wrong = []
    for verb in verbs:
        if verb in PLACEHOLDERS:
            continue
        if verb not in DECLARED:
            wrong.append(f"no verb '{verb}' in: {command}")
        else:
            wrong += [f"{verb} has no {o}: {command}" for o in options if o not in DECLARED[verb]]
    return wrong


def test_the_reader_of_commands_sees_what_a_person_sees() -> None:
    text = (
        "Say `amrctl inspect F --json`, or `amrctl\nrecipes`.\n"
        "```\n$ amrctl pretrain|finetune --recipe R \\\n    --out RUN   # --not-an-option\n"
        "amrctl fuse a b --wbf\n            [--iou 0.5]\nnot amrctl --x\namrctl: no --y\n```\n"
        "```python\namrctl = 1\n```\n"
    )
    found = [" ".join(command.split()) for command in commands(text)]
    assert found == [
        "amrctl pretrain|finetune --recipe R --out RUN",
        "amrctl fuse a b --wbf [--iou 0.5]",
        "amrctl inspect F --json",
    ]
    assert faults("amrctl pretrain|finetune --recipe R --iou 1") == [
        "pretrain has no --iou: amrctl pretrain|finetune --recipe R --iou 1",
        "finetune has no --iou: amrctl pretrain|finetune --recipe R --iou 1",
    ]
    assert faults("amrctl mix --out X") == ["no verb 'mix' in: amrctl mix --out X"]
    assert faults("amrctl search --checkpoint C -- -odd.wav x") == []
    assert faults("amrctl --install-completion") == []
    assert faults("amrctl --instal") == [" has no --instal: amrctl --instal"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_in_the_documentation_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [fault for command in commands(text) for fault in faults(command)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_that_shows_it_and_is_in_the_readme(verb: str) -> None:
    name = PAGE_OF.get(verb, f"{verb}.md")
    page = (DOCS / name).read_text(encoding="utf-8")
    named = [word for command in commands(page) for word in command.split()[1:2]]
    assert any(verb in word.split("|") for word in named), f"docs/{name} shows no amrctl {verb}"
    assert f"docs/{name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_every_help_text_exist(verb: str) -> None:
    shown = examples(verb)
    assert shown, f"amrctl {verb} --help has no examples"
    assert not [fault for example in shown for fault in faults(example)]


def examples(verb: str) -> list[str]:
    """The commands in a verb's help text."""
    module = importlib.import_module(f"amrctl.cli.{verb.replace('-', '_')}")
    lines = re.split(r"\n\s*\n", module.run.__doc__.partition("Examples:")[2])
    return [" ".join(line.split()) for line in lines if line.strip().startswith("amrctl ")]


# a key that stands for any, the made-up component of a page, and a mistake that is shown with its answer
NOT_REAL = ("KEY=", "key.path=", "inference.x=", "local-average", "train.epoch=3")


def fits(recipe: str, change: str) -> bool:
    """Whether `--set change` is a key and a value of the recipe."""
    try:
        load_any(recipe, "finetune", [change])
    except RecipeError:
        return False
    return True


def test_every_recipe_key_in_the_documentation_can_be_set() -> None:
    shown = [command for page in TEXTS for command in commands(page.read_text(encoding="utf-8"))]
    shown += [example for verb in VERBS for example in examples(verb)]
    text = "\n".join([*shown, *(FENCE.sub("", page.read_text(encoding="utf-8")) for page in TEXTS)])
    sets = {
        quoted or plain
        for quoted, plain in re.findall(r"""--set (?:["']([^"']+)["']|([^\s`|"'\]]+))""", text)
    }
    sets = {s.rstrip(".,;:)") for s in sets if "=" in s and not any(word in s for word in NOT_REAL)}
    assert len(sets) > 5
    for item in sorted(sets):
        assert any(fits(recipe, item) for recipe in ("qd-detr", *shipped())), item


def links(page: Path) -> Iterator[Path]:
    """Files that a page links to."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            yield (page.parent / target.partition("#")[0]).resolve()


def test_the_index_lists_every_page_once_and_no_other() -> None:
    listed = [path for path in links(DOCS / "index.md") if path.suffix == ".md" and DOCS in path.parents]
    assert sorted(listed) == [page for page in PAGES if page != DOCS / "index.md"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    assert not [str(target) for target in links(page) if not target.exists()]


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/papers.md", "docs/status.md"])
def test_files_named_in_the_overview_pages_exist(name: str) -> None:
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    named = re.findall(r"`((?:amrctl|tests|docs|benchmarks)/[\w./-]*)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]


def python_blocks() -> list[tuple[str, str]]:
    """Page and code of every Python block."""
    return [
        (page.name, code)
        for page in TEXTS
        for language, code in blocks(page.read_text(encoding="utf-8"))
        if language == "python"
    ]


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_python_in_the_documentation_imports_what_exists(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code, page)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amrctl"):
            module = importlib.import_module(node.module or "")
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_the_readme_begins_with_the_demo_and_the_tests() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for _, block in blocks(text) for line in block.splitlines()]
    assert [line.partition("#")[0].strip() for line in lines[:2]] == ["make demo", "make test"]


def test_no_tracked_text_names_a_path_of_one_machine() -> None:
    """Folders under the root that only a particular machine has."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.$}])/(?:" + "|".join(("work", "tmp", "root", "farm", "home")) + r")/")
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
