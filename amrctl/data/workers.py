"""Jobs spread over processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from amrctl.errors import AmrctlError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

_AHEAD = 4  # jobs handed out per worker, so that a long list is not pickled at once

_work: Callable[[Any], Any] | None = None  # of a worker process, for as long as it lives


def spread(
    prepare: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job], workers: int
) -> Generator[Answer, None, None]:
    """What `prepare()` makes of each job, in the order in which they are done, in `workers` processes.

    `prepare` is called once in each process, so that what is costly to make (an encoder, open
    material) is made once; it, the jobs and the answers must be picklable. Closing the generator
    stops the work. Raises what a job raises, and `AmrctlError` when a process dies.
    """
    # spawned, not forked: numpy, torch and encoders bring threads, which a fork would leave locked
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, _start, (prepare,))
    try:
        waiting: set[Future[Any]] = set()
        todo = iter(jobs)
        while True:
            while len(waiting) < _AHEAD * workers:
                try:
                    waiting.add(pool.submit(_answer, next(todo)))
                except StopIteration:
                    break
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise AmrctlError(
            "a worker process died (out of memory?); run the same command with fewer --workers, "
            "it goes on where it stopped"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """In a worker: end when the parent is killed, leave Ctrl-C to the parent, get ready."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _work = prepare()


def _answer(job: Any) -> Any:
    assert _work is not None
    return _work(job)
