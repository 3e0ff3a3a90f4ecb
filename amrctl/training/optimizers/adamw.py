"""AdamW (Loshchilov & Hutter, ICLR 2019), one group for all parameters, as the official baseline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


class Rates(ComponentConfig):
    """Rates and decay; the defaults are the official baseline's."""

    lr: float = Field(1e-4, gt=0, description="base learning rate, before the schedule's factor")
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class Config(Rates):
    """No options of its own."""

    kind: Literal["adamw"] = "adamw"


@component("optimizer", "adamw", Config)
def adamw(config: Config, parameters: Iterable[Parameter]) -> Optimizer:
    """The optimiser over `parameters`; the update of all tensors runs in one fused kernel."""
    import torch

    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
