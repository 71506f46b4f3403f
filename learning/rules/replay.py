"""Local learning from a buffer of past inputs (Belilovsky et al. 2021, arXiv 2106.06401)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Kept
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class ReplayedLocal(Rule):
    """Decoupled greedy learning in which a block draws its batch from the last `buffer` inputs."""

    kind: Literal["replay"] = "replay"
    buffer: Kept = Field(default=4, description="messages kept between two blocks")
    head: HeadSettings = HeadSettings()

    @property
    def slots(self) -> int:
        return self.buffer

    def objective(self, site: Site) -> Objective | None:
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(head)
