"""Interlocking backpropagation (Gomez et al. 2022, JMLR 23(171), arXiv 2010.04116)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Depth
from learning.credit import Hop
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class Interlocking(Rule):
    """Block k learns from the auxiliary loss N-1 blocks ahead, or from the task loss near the end.

    `reach` is N: 1 is local learning, 2 pairwise, K end to end. An auxiliary network learns only
    from its own loss, on a detached input; the nearer losses do not reach the block.
    """

    kind: Literal["interlocking"] = "interlocking"
    reach: Depth = Field(default=2, description="N: blocks that a gradient goes through")
    head: HeadSettings = HeadSettings()

    @property
    def credit(self) -> Hop:
        return Hop({self.reach - 1: 1.0})

    def objective(self, site: Site) -> Objective | None:
        return AuxiliaryClassifier(
            make_head(self.head, site.shape, site.classes, site.target_shape)
        )
