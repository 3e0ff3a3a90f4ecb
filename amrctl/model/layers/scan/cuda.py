"""The scan by `mamba_ssm`'s kernel (Gu and Dao, 2023; optional, NVIDIA GPUs), which wants time last."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def kernel() -> tuple[Any, str]:
    """The library's function, or None and the reason why it cannot be had."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a wheel for another torch fails in many ways
        lines = str(error).strip().splitlines()
        return None, lines[0] if lines else type(error).__name__
    return selective_scan_fn, ""


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    bias: Tensor,
    soft: bool,
) -> Tensor:
    """`selective_scan` by the library; A, D and bias in float32, frames of one dtype."""
    function, _ = kernel()
    frames = [None if x is None else x.to(u.dtype).transpose(1, 2).contiguous() for x in (u, delta, z)]
    projected = [x.to(u.dtype).transpose(1, 2).contiguous() for x in (b, c)]
    wide = [x.to(torch.float32).contiguous() for x in (a, d, bias)]
    out: Tensor = function(
        frames[0],
        frames[1],
        wide[0],
        *projected,
        wide[1],
        z=frames[2],
        delta_bias=wide[2],
        delta_softplus=soft,
    )
    return out.transpose(1, 2)
