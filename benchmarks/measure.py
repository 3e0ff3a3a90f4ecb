"""Time, memory and counted operations of a piece of work, and what the machine can do at best."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], Any]
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "sve")


def interleaved(works: Mapping[str, Work], repeat: int, *, warm: int = 1) -> dict[str, float]:
    """Median seconds of each piece of work; in every round all of them run, one after the other, so
    that what else the machine does falls on all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-warm, repeat):
        for name, work in works.items():
            gc.collect()
            began = time.perf_counter()
            work()
            if turn >= 0:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mb(work: Work) -> float | None:
    """Most resident memory during `work` beyond what was there before, in MB; None where the system
    does not tell. Memory that was freed before and is used again does not show."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _status("VmRSS")
        work()
        return max(_status("VmHWM") - before, 0) / 1024
    except OSError:
        work()
        return None


def _status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key + ":")))


def flops(work: Work) -> float:
    """Floating point operations of the matrix products in `work` (attention counted as its products)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products in other threads are not seen
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            work()
    finally:
        torch.set_num_threads(threads)
    return float(counter.get_total_flops())


_RATES: dict[torch.dtype, float] = {}


def matrix_rate(dtype: torch.dtype) -> float:
    """Matrix-product operations per second on this machine with the threads torch has: the best seen so far.

    Each call tries again, several products of the size the detector has most of (9,600 rows, 256 x 1,024)
    and of a square one: a machine with other work has moments in which it is half as fast.
    """
    rates = [_RATES.get(dtype, 0.0)]
    for n, k, m in ((9600, 256, 1024), (1024, 1024, 1024)):
        a, b = torch.randn(n, k).to(dtype), torch.randn(k, m).to(dtype)
        out = a @ b
        for _ in range(6):
            began = time.perf_counter()
            torch.matmul(a, b, out=out)
            rates.append(2.0 * n * k * m / (time.perf_counter() - began))
    _RATES[dtype] = max(rates)
    return _RATES[dtype]


def machine() -> list[str]:
    """Lines that say on what a table was made."""
    cpuinfo = Path("/proc/cpuinfo")
    told: dict[str, str] = {}
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        told[key.strip()] = value.strip()
    model = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", told.get("Features", "")).split()
    having = ", ".join(flag for flag in _FLAGS if flag in flags) or "no known flags"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        f"{model}, {cores} cores, {torch.get_num_threads()} threads ({having})",
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}",
        f"matrix products: {matrix_rate(torch.float32) / 1e9:,.0f} GFLOP/s in float32, "
        f"{matrix_rate(torch.bfloat16) / 1e9:,.0f} in bfloat16",
    ]
