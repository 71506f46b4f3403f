"""Momentum auxiliary networks (Su et al. 2024, ECCV, arXiv 2407.05623)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from learning.bounds import Fraction, Steps
from learning.learners.publishing import Reading
from learning.objectives.base import Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.objectives.momentum import MomentumClassifier
from learning.objectives.patterns import fresh, output_shape
from learning.rules.base import Rule, Site


class MomentumAuxiliary(Rule):
    """Local learning whose heads read a moving average of the next block's first unit.

    Where that unit is the network's last one, or has no weights, the head reads the block's output
    as under `local`.
    """

    looks_ahead: ClassVar[bool] = True

    kind: Literal["man"] = "man"
    momentum: Fraction = Field(
        default=0.995, description="share of the average that stays, for each step"
    )
    every: Steps = Field(default=1, description="steps from one publication to the next")
    head: HeadSettings = HeadSettings()

    def objective(self, site: Site) -> Objective | None:
        unit = site.later[0][0]
        is_head = len(site.later) == len(site.later[0]) == 1
        shape, average, bias = site.shape, None, None
        if not is_head and any(True for _ in unit.module.parameters()):
            average, bias = unit.module, fresh(unit)
            shape = output_shape(unit.module, site.shape)
        head = make_head(self.head, shape, site.classes, site.target_shape)
        return MomentumClassifier(head, average, bias, self.momentum**self.every)

    def readings(self, last: int) -> Sequence[Reading]:
        return [Reading(k, k + 1, 0, self.every) for k in range(1, last)]
