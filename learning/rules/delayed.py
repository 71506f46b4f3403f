"""Delayed gradients: DDG (Huo et al. 2018a) and features replay (Huo et al. 2018b)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from learning.bounds import DepthFrom0, Rate
from learning.credit import Delayed
from learning.objectives.base import Objective
from learning.rules.base import Rule, Site


class DelayedGradients(Rule):
    """True gradients of the task loss, (K-k) times `lag` steps old at block k, so nothing waits.

    `stash`: `weights` keeps the activations and the weights they were made with (arXiv 1804.10574);
    `inputs` runs the kept input again through today's weights (features replay, NeurIPS 2018).
    """

    kind: Literal["delayed"] = "delayed"
    lag: DepthFrom0 = Field(default=1, description="steps of delay a boundary; 0 is backprop")
    stash: Literal["weights", "inputs"] = "weights"
    compensation: Rate = Field(
        default=0.0, description="of the gradient's change since its forward pass"
    )

    @property
    def credit(self) -> Delayed:
        return Delayed(self.lag, self.stash, self.compensation)

    def objective(self, site: Site) -> Objective | None:
        return None

    @model_validator(mode="after")
    def _weights_are_known(self) -> Self:
        if self.compensation and self.stash != "weights":
            raise ValueError(
                f"rule.compensation = {self.compensation:g} needs the weights of the forward pass, "
                f"but rule.stash = {self.stash}: set rule.stash to weights or compensation to 0"
            )
        return self
