"""Local learning: every block minimises the loss of its own auxiliary classifier."""

from __future__ import annotations

from typing import Literal

from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class Local(Rule):
    """Decoupled greedy learning (Belilovsky et al. 2020, arXiv 1901.08164), all blocks at once."""

    kind: Literal["local"] = "local"
    head: HeadSettings = HeadSettings()

    def objective(self, site: Site) -> Objective | None:
        return AuxiliaryClassifier(
            make_head(self.head, site.shape, site.classes, site.target_shape)
        )
