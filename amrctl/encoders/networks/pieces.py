"""Windows on several threads, each of which takes some through all layers.

What a product reads and writes stays in the cache of one core so, and no thread waits for the others
after every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def in_pieces(work: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """`work` on windows `(n, ...)`, some for each of torch's threads; `(n, dim)` without gradients.

    On one thread, or with fewer windows than threads, `work` gets all at once and torch's threads.
    """
    threads = torch.get_num_threads()
    if threads < 2 or len(windows) < threads:
        with torch.inference_mode():
            return work(windows)

    def alone(piece: Tensor) -> Tensor:
        torch.set_num_threads(1)  # for this thread, and as a default for threads that begin later
        with torch.inference_mode():
            return work(piece)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="windows") as pool:
            return torch.cat(list(pool.map(alone, windows.tensor_split(threads))))
    finally:
        torch.set_num_threads(threads)
