"""Spreading the jobs of a compiled kernel over threads of our own.

A kernel lets go of the interpreter lock, so plain Python threads do, and there is no second OpenMP beside
torch's. The pool belongs to the process that made it: after a fork the child makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_PIECES = 4  # per thread, so that a busy core does not keep the others waiting
_LEAST = 1 << 15  # numbers that a thread should have to do, for it to be worth waking
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def spread(count: int, work: Callable[[int, int], None]) -> None:
    """Call `work(first, last)` over the range of `count`, on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(0, count)
        return
    pieces = min(count, _PIECES * threads)
    _share(threads, pieces, lambda i: work(count * i // pieces, count * (i + 1) // pieces))


def spread_elements(size: int, block: int, work: Callable[[int, int], None]) -> None:
    """`spread` of `size` elements in whole blocks: `work(first, last)` takes numbers of blocks."""
    blocks = -(-size // block)
    if size <= _LEAST:
        work(0, blocks)
    else:
        spread(blocks, work)


def spread_products(count: int, work: Callable[[int], None]) -> None:
    """Call `work(i)` for each i below `count` on as many threads as torch may use, of which torch's own
    operations in `work` use no more. Gradients are not recorded there."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    before = torch.get_num_threads()

    def alone(i: int) -> None:
        torch.set_num_threads(1)  # of this thread, and of threads that begin later
        with torch.no_grad():
            work(i)

    try:
        _share(threads, count, alone)
    finally:
        torch.set_num_threads(before)


def _share(threads: int, count: int, work: Callable[[int], None]) -> None:
    """Call `work(i)` for each i below `count`: this thread takes its part, so that one fewer has to wake."""
    left = iter(range(count))

    def some() -> None:
        for i in left:  # the next one that no thread has taken
            work(i)

    helpers = [_pool(threads - 1).submit(some) for _ in range(threads - 1)]
    try:
        some()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)  # whatever happens here, none is left at work on the same arrays
    for helper in begun:
        helper.result()  # an error in a thread is raised here


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools.clear()
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="kernel")
    return _pools[key]
