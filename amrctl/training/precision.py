"""Number formats of training (float32, or bfloat16 for the matrix products), devices, compilation.

Weights, gradients, the optimiser, matching and losses are float32 in both; bfloat16 has float32's
range, so no loss scaling is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from amrctl.errors import AmrctlError
from amrctl.processor import cpu_has_bf16

Resolved = Literal["fp32", "bf16"]
CHOICES = ("auto", "fp32", "bf16")


def resolve(asked: str, device: torch.device) -> Resolved:
    """`auto` becomes bf16 where `device` has it in hardware, else fp32. Raises `AmrctlError`."""
    if asked == "fp32":
        return "fp32"
    if asked == "bf16":
        return "bf16"
    if asked != "auto":
        raise AmrctlError(f"--precision {asked}: there is {', '.join(CHOICES)}")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def autocast(precision: Resolved, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context for the forward pass; does nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def pick_device(asked: str) -> torch.device:
    """`auto` takes CUDA when there is one. Raises `AmrctlError` for a device that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.partition(":")[0] not in ("cpu", "cuda"):
        raise AmrctlError(f"--device {asked}: there is auto, cpu, cuda")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise AmrctlError(f"--device {asked}: no CUDA device is visible; use --device cpu")
    try:
        return torch.device(asked)
    except RuntimeError:
        raise AmrctlError(f"--device {asked}: there is auto, cpu, cuda, cuda:N") from None


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The forward pass of `module` through `torch.compile`; the module itself, its tensors' names
    included, stays what it is. What cannot be compiled runs as it is.

    Raises `AmrctlError` at the first call where the compiler is missing or gives up.
    """
    made = torch.compile(module, dynamic=True)

    def call(*args: Any) -> Any:
        try:
            return made(*args)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            first = str(error).strip().partition("\n")[0]
            raise AmrctlError(f"train.compile: torch.compile fails here: {first}; leave it out") from error

    return call
