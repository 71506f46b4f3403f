"""BackLink (Guo et al. 2022, arXiv 2205.07141): a truncated way back between blocks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Depth, Factor
from learning.credit import Hop
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class BackLink(Rule):
    """Own loss plus the next block's, whose gradient stops after the block's last `units` units.

    The paper's link lengths and weights are not published: these are free settings here.
    """

    kind: Literal["backlink"] = "backlink"
    units: Depth = Field(default=1, description="units that the next block's loss reaches")
    weight: Factor = Field(default=1.0, description="of the next block's loss")
    head: HeadSettings = HeadSettings()

    @property
    def credit(self) -> Hop:
        return Hop({0: 1.0, 1: self.weight}, tail=self.units)

    def objective(self, site: Site) -> Objective | None:
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(head)
