"""Shared fixtures: the real command in this process, and the optional folder of real data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many small tests, few cores


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: it takes minutes, and at the end all but one process would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(autouse=True)
def exact_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision `auto` of a frozen network is float32 on every CPU, so that no test depends on which."""
    monkeypatch.setattr("amrctl.encoders.frozen.cpu_has_bf16", lambda: False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `amrctl ARGS...` in this process through its real entry point."""

    def call(*args: object) -> Result:
        from amrctl.cli.app import main

        monkeypatch.setattr(sys, "argv", ["amrctl", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real annotations and sounds beside a checkout, where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the folder of real data (../shared) is not on this machine")
    return folder
