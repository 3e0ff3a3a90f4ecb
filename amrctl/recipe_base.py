"""What the recipes of all tasks share: strictness, the stages, and how a stage trains."""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from amrctl.registry import ComponentConfig

Stage = Literal["pretrain", "finetune"]
STAGES: tuple[Stage, ...] = ("pretrain", "finetune")


class Strict(BaseModel):
    """A block of a recipe: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ema(Strict):
    """Exponential moving average of the weights; the averaged weights are what is evaluated and saved."""

    decay: float = Field(0.999, gt=0, lt=1)


class StageTrain(Strict):
    """How one stage trains, whatever is trained."""

    epochs: int = Field(200, ge=1)
    batch: int = Field(32, ge=1)
    eval_batch: int = Field(100, ge=1)
    optimizer: SerializeAsAny[ComponentConfig]
    schedule: SerializeAsAny[ComponentConfig]
    clip: float | None = Field(0.1, gt=0, description="largest norm of the gradient")
    metrics: list[str] = Field(default=["R1@0.7", "mAP"], min_length=1, description="the first is primary")
    evaluate_every: int = Field(1, ge=1, description="epochs between validations")
    patience: int | None = Field(None, ge=1, description="validations without a better primary metric")
    ema: Ema | None = None
    compile: bool = Field(False, description="compile the network's forward pass (torch.compile)")


class BaseRecipe(Strict):
    """What stands at the head of every recipe."""

    name: str
    source: str
    stage: Stage

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the spelling that the reader takes."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=100)
