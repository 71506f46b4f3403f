"""Periodic global guidance (Bhatti & Moon 2022, arXiv 2208.00821)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from learning.bounds import Steps
from learning.credit import Guided
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class PeriodicGuidance(Rule):
    """Local learning, but the first `guided` steps of every `period` are backprop.

    Every block knows the phase from the number of the step; heads rest while blocks are guided.
    """

    kind: Literal["guided"] = "guided"
    period: Steps = Field(default=10, description="steps from one guidance to the next")
    guided: Steps = Field(default=1, description="guided steps in a period")
    head: HeadSettings = HeadSettings()

    @property
    def credit(self) -> Guided:
        return Guided(self.period, self.guided)

    def objective(self, site: Site) -> Objective | None:
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(head)

    @model_validator(mode="after")
    def _guidance_fits(self) -> Self:
        if self.guided > self.period:
            raise ValueError(
                f"rule.guided = {self.guided} is more than rule.period = {self.period}: lower it "
                "(equal to the period it is backprop)"
            )
        return self
