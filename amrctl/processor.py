"""What this machine's processor can do."""

from __future__ import annotations


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself (AVX512-BF16 or AMX)."""
    import torch

    table = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch we allow
    if table is None:
        return _flagged("/proc/cpuinfo")
    found = table()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _flagged(path: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            flags = next((line.split() for line in stream if line.startswith("flags")), [])
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
