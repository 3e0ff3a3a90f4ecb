"""Imports run one way: each folder is one stage and imports only earlier ones."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import amrctl

ROOT = Path(amrctl.__file__).parent

# Stages in the order of the work. A unit may import itself and what its row names.
GROUND = {"errors", "progress", "compiled", "arithmetic", "processor", "launch"}
FILES = GROUND | {"spans", "provenance"}
RECIPES = FILES | {"registry", "recipe", "recipe_base", "recipe_retrieval", "checkpoint_file"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "compiled": set(),
    "arithmetic": set(),
    "processor": set(),
    "launch": {"errors"},
    "spans": {"errors"},
    "provenance": {"errors"},
    "registry": {"errors"},
    "recipe_base": {"registry"},
    "recipe_retrieval": {"recipe_base", "registry"},
    "recipe_edit": {"errors"},
    "recipe": {"errors", "registry", "recipe_base", "recipe_edit", "recipe_retrieval"},
    "checkpoint_file": {"errors", "provenance"},
    "recipe_catalogue": {"errors", "registry", "recipe"},
    "run_folder": {"errors", "provenance"},
    # `encoders/dual` is a network that is trained here: its recipe, its checkpoint, its run folder
    "encoders": RECIPES | {"run_folder"},
    # `data` asks encoders for features and a recipe for what to load; `inspect` names run folders
    "data": RECIPES | {"encoders", "run_folder"},
    "evaluation": FILES | {"data"},
    "model": RECIPES | {"encoders", "data"},
    "losses": RECIPES | {"encoders", "data", "model"},
    # a score is a term's probability: `inference/scores` uses the losses' definition of it
    "inference": RECIPES | {"encoders", "data", "model", "losses"},
    "training": RECIPES | {"run_folder", "encoders", "data", "model", "losses", "inference", "evaluation"},
    "ensemble": FILES | {"run_folder", "data", "model"},
    "rerank": FILES | {"registry", "encoders", "data"},
    "submission": FILES | {"data"},
    "archive": FILES | {"registry", "encoders", "data"},
    "pipeline": RECIPES
    | {
        "recipe_catalogue",
        "run_folder",
        "encoders",
        "data",
        "evaluation",
        "model",
        "losses",
        "inference",
        "training",
    }
    | {"ensemble", "rerank", "submission", "archive"},
}
LATE = {"cli", "__main__"}  # the command line may import everything

# Files that stay without a heavy library although their folder uses it.
NUMPY_ONLY = (
    "evaluation",
    "submission",
    "rerank",
    "encoders/logmel.py",
    "encoders/gammatone.py",
    "encoders/words.py",
    "encoders/chars.py",
    "spans.py",
)


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The folder or file of the package that a module belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported anywhere in a module, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """Names imported when the module itself is imported; not in functions nor under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield from imported(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_unit_has_a_row() -> None:
    units = {unit_of(path) for path in modules()} - LATE - {"__init__", "recipes"}
    assert len(units) > 10
    assert units <= set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    unit = unit_of(path)
    known = set(ALLOWED) | LATE
    for name in imported(parsed(path)):
        parts = name.split(".")
        if parts[0] != "amrctl" or len(parts) == 1:
            continue
        target = parts[1]
        if unit in LATE or target == unit:
            continue
        if target not in known:
            assert name == "amrctl.__version__", f"{name} is not a module"
            continue
        assert target in ALLOWED.get(unit, set()), f"{unit} must not import {name}"


def test_the_table_is_one_way() -> None:
    """No unit can reach itself through the units that it may import."""
    for start in ALLOWED:
        seen: set[str] = set()
        todo = list(ALLOWED[start])
        while todo:
            unit = todo.pop()
            assert unit != start, f"{start} reaches itself"
            if unit not in seen:
                seen.add(unit)
                todo.extend(ALLOWED[unit])


def test_no_module_reaches_itself() -> None:
    """Also not through imports inside functions; what only the type checker reads is free."""

    def needed(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield from imported(child)
            else:
                yield from needed(child)

    names = {".".join(("amrctl", *p.relative_to(ROOT).with_suffix("").parts)): p for p in modules()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set(needed(parsed(path)))
        graph[name] = {n if n in names else n.rpartition(".")[0] for n in found} & names.keys() - {name}
    assert sum(map(len, graph.values())) > 100
    tuple(graphlib.TopologicalSorter(graph).static_order())  # a circle raises, and names its modules


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_commands_import_heavy_things_late(path: Path) -> None:
    heavy = {"torch", "numpy", "h5py", "scipy", "soundfile", "soxr", "matplotlib", "transformers", "pydantic"}
    early = {name.split(".")[0] for name in at_module_level(parsed(path))}
    assert not early & heavy
    ours = {name.split(".")[1] for name in at_module_level(parsed(path)) if name.startswith("amrctl.")}
    assert ours <= {"cli", "errors", "progress", "launch", "__version__"}


@pytest.mark.parametrize(
    "path",
    [p for p in modules() if str(p.relative_to(ROOT)).startswith(NUMPY_ONLY)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_what_works_on_files_does_not_need_torch(path: Path) -> None:
    assert "torch" not in {name.split(".")[0] for name in at_module_level(parsed(path))}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    banned = {"marshal", "shelve", "dill", "cloudpickle"}
    assert not banned & {name.split(".")[0] for name in imported(parsed(path))}
    assert not any(name.startswith("pickle.") for name in imported(parsed(path)))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # torch raises pickle's error for a file that is not safe to read; nothing else is used
            assert node.value.id != "pickle" or node.attr == "UnpicklingError"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert (keyword.arg, value) not in (("shell", True), ("weights_only", False))


def test_help_does_not_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "amrctl", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "evaluate" in done.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "h5py", "scipy", "pydantic", "soundfile", "matplotlib"}
