"""Processes with the variables that torchrun gives them, forked from one that has torch loaded already."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = mp.get_context("forkserver")
_SLOW = ("training.retrieval", "encoders.dual.audio.transformers", "encoders.dual.text.transformers")
_CONTEXT.set_forkserver_preload([*(f"amrctl.{name}" for name in _SLOW), "matplotlib.pyplot"])


class Team:
    """`count` processes that run `main(*args)`; what they print goes to files of `folder`."""

    def __init__(self, folder: Path, count: int, main: Callable[..., None], *args: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when the first of them loads torch
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.ranks = folder, list[ForkServerProcess]()
        for rank in range(count):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **numbers}
            variables = {key: str(value) for key, value in told.items()}
            self.ranks.append(_CONTEXT.Process(target=_begin, args=(variables, folder, main, args)))
            self.ranks[-1].start()

    def codes(self) -> list[int | None]:
        """Wait for all and give their exit codes."""
        for process in self.ranks:
            process.join(120)
        return [process.exitcode for process in self.ranks]

    def said(self, rank: int, stream: str = "err") -> str:
        """What a rank printed."""
        return (self.folder / f"{rank}.{stream}").read_text()


def command(*words: object) -> None:
    """The real entry point."""
    from amrctl.cli.app import main

    sys.argv = ["amrctl", *map(str, words)]
    main()


def _begin(
    variables: dict[str, str], folder: Path, main: Callable[..., None], args: tuple[object, ...]
) -> None:
    os.environ.update(variables)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{variables['RANK']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    main(*args)
