"""Overlapping blocks: a block learns from its own loss and the next block's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Factor
from learning.credit import Hop
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class Overlapping(Rule):
    """Own loss plus `weight` times the loss of the next block.

    LoCo (Xiong et al. 2020, arXiv 2008.01342), Laskin et al. 2020 (arXiv 2012.03837) and HPFF (Su
    et al. 2024, arXiv 2407.05638), with one head a block where HPFF has separate cascade heads.
    """

    kind: Literal["overlapping"] = "overlapping"
    weight: Factor = Field(default=1.0, description="of the next block's loss")
    head: HeadSettings = HeadSettings()

    @property
    def credit(self) -> Hop:
        return Hop({0: 1.0, 1: self.weight})

    def objective(self, site: Site) -> Objective | None:
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(head)
