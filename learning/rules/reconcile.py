"""Successive gradient reconciliation (Yang et al. 2024, arXiv 2406.05222)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Flag, Fraction, Rate
from learning.credit import Reconcile
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class Reconciliation(Rule):
    """Local learning plus a penalty on the distance between gradients at each boundary.

    The paper states the idea; norm, weight and schedule are derived in docs/rules/reconcile.md.
    """

    kind: Literal["reconcile"] = "reconcile"
    distance: Literal["scale-free", "squared"] = Field(
        default="scale-free", description="of directions, 2 (1 - cos), or of the gradients"
    )
    weight: Rate = Field(default=0.1, description="of the penalty")
    warmup: Fraction = Field(
        default=0.1, description="share of all steps in which the weight rises from 0"
    )
    bp_free: Flag = Field(
        default=False,
        description="hold the gradient at the block's output constant inside the penalty",
    )
    head: HeadSettings = HeadSettings()

    @property
    def credit(self) -> Reconcile:
        return Reconcile(self.weight, self.warmup, self.distance == "scale-free", self.bp_free)

    def objective(self, site: Site) -> Objective | None:
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(head)
