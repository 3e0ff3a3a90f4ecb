"""Components are found by scanning; wrong names and doubles are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from amrctl import registry
from amrctl.errors import RecipeError
from amrctl.registry import ComponentConfig, component


class Config(ComponentConfig):
    kind: Literal["probe"] = "probe"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package that is the slot `probes`, and a registry that forgets it afterwards."""
    name = "amrctl_probes_of_a_test"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.SLOTS, "probes", name)
    monkeypatch.setattr(registry, "_found", dict(registry._found))
    monkeypatch.setattr(registry, "_scanned", set(registry._scanned))
    yield folder
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


FILE = """
from typing import Literal
from amrctl.registry import ComponentConfig, component
class Config(ComponentConfig):
    kind: Literal["{kind}"] = "{kind}"
@component("probes", "{kind}", Config)
def build(config):
    return "built " + config.kind
"""


def test_a_new_file_is_a_new_component(package: Path) -> None:
    (package / "first.py").write_text(FILE.format(kind="first"))
    (package / "second.py").write_text(FILE.format(kind="second"))
    assert registry.kinds("probes") == ["first", "second"]
    found = registry.find("probes", "second")
    assert (found.slot, found.kind) == ("probes", "second")
    assert found.build(found.config(kind="second")) == "built second"


def test_a_wrong_name_gets_the_nearest(package: Path) -> None:
    (package / "first.py").write_text(FILE.format(kind="first"))
    with pytest.raises(RecipeError, match=r"no probes component is called 'frist'; did you mean 'first'\?"):
        registry.find("probes", "frist")
    with pytest.raises(RecipeError, match="there is: first"):
        registry.find("probes", "zzz")


def test_a_double_is_an_error(package: Path) -> None:
    component("probes", "probe", Config)(object())
    with pytest.raises(ValueError, match="registered twice"):
        component("probes", "probe", Config)(object())


def test_an_unknown_slot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no slot is called 'wheels'"):
        component("wheels", "probe", Config)(object())


def test_a_file_that_does_not_import_is_told_every_time(package: Path) -> None:
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            registry.kinds("probes")


def test_options_are_checked_and_frozen() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Config.model_validate({"kind": "probe", "colour": "red"})
    with pytest.raises(ValueError, match="frozen"):
        Config().kind = "probe"


@pytest.mark.parametrize("slot", sorted(set(registry.SLOTS) - {"hooks", "refine"}))
def test_every_slot_has_components_whose_config_takes_their_name(slot: str) -> None:
    kinds = registry.kinds(slot)
    assert kinds
    for kind in kinds:
        field = registry.find(slot, kind).config.model_fields["kind"]
        assert (field.is_required() and field.annotation is str) or field.default == kind
