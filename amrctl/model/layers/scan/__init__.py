"""The selective scan of Mamba and the short convolution before it, each on the best engine there is.

Source: Gu and Dao, Mamba (2023), sections 3.2 and 3.3, with the zero-order hold for A and the Euler step for
B, as in its released code. Engines: `cpu` (compiled loops), `mamba_ssm` (that library's kernel, where it is
installed, on CUDA) and `torch` (plain operations, anywhere). In float32 each output and each gradient is
within 1e-4 of that tensor's largest value of a step-by-step scan in float64. The first CUDA scan without
`mamba_ssm` says so, once, as a Python warning.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

from torch import Tensor

from amrctl.model.layers.stacking import in_turn, stacked

Engine = Literal["auto", "cpu", "torch", "mamba_ssm"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    engine: Engine = "auto",
) -> Tensor:
    """Run the recurrence over time, state 0 before the first frame, and read it out.

        s_t = delta_t + delta_bias, through softplus if asked
        h_t = exp(s_t A) * h_(t-1) + s_t u_t B_t       per channel, N states
        y_t = (h_t . C_t + D u_t) * SiLU(z_t)

    `u`, `delta`, `z` [B, T, D]; `a` [D, N], below 0; `b`, `c` [B, T, N]; `d`, `delta_bias` [D]. T is at
    least 1. Returns [B, T, D] in the dtype of `u`; half precision computes in float32 (float16 returns
    float32 on a CPU). Memory for the backward pass is a sixteenth of T x D x N.
    """
    d = a.new_zeros(a.shape[0]) if d is None else d
    bias = a.new_zeros(a.shape[0]) if delta_bias is None else delta_bias
    if stacked(u):

        def alone(
            u: Tensor,
            delta: Tensor,
            a: Tensor,
            b: Tensor,
            c: Tensor,
            d: Tensor,
            bias: Tensor,
            z: Tensor | None = None,
        ) -> Tensor:
            return selective_scan(u, delta, a, b, c, d, z, bias, delta_softplus, engine=engine)

        return in_turn(alone, u, delta, a, b, c, d, bias, *(() if z is None else (z,)))
    if engine == "auto":
        engine = _engine(u.device.type)
    if engine == "cpu":
        from amrctl.model.layers.scan import cpu

        return cpu.scan(u, delta, a, b, c, d, z, bias, delta_softplus)
    if engine == "mamba_ssm":
        from amrctl.model.layers.scan import cuda

        return cuda.scan(u, delta, a, b, c, d, z, bias, delta_softplus)
    from amrctl.model.layers.scan import plain

    return plain.scan(u, delta, a, b, c, d, z, bias, delta_softplus)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of each channel's convolution with its present and earlier frames.

    `x` [B, T, D], `weight` [D, K] (the last tap meets the frame itself), `bias` [D]; returns [B, T, D].
    """
    if stacked(x):
        return in_turn(causal_conv, x, weight, bias)
    if x.device.type == "cpu":
        from amrctl.model.layers.scan import cpu

        return cpu.convolve(x, weight, bias)
    from amrctl.model.layers.scan import plain

    return plain.convolve(x, weight, bias)


@cache
def _engine(device: str) -> Engine:
    """The best engine for a device type; tells once when CUDA has to do without its kernel."""
    if device == "cpu":
        return "cpu"
    if device == "cuda":
        from amrctl.model.layers.scan import cuda

        function, reason = cuda.kernel()
        if function is not None:
            return "mamba_ssm"
        warnings.warn(f"mamba_ssm cannot be used ({reason}); the slower scan in torch is", stacklevel=3)
    return "torch"
