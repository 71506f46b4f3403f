"""Local learning of neuron groups (Patel, Eickenberg & Belilovsky 2023, arXiv 2301.07635)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Depth, Rate
from learning.objectives.base import Objective
from learning.objectives.groups import GroupClassifiers
from learning.objectives.heads import HeadSettings, make_head
from learning.rules.base import Rule, Site


class NeuronGroups(Rule):
    """Local learning in which each group of a block's channels has a head of its own."""

    kind: Literal["neuron-groups"] = "neuron-groups"
    groups: Depth = Field(default=2, description="groups of channels; 1 is local learning")
    diversity: Rate = Field(default=0.5, description="weight of the penalty on agreement")
    head: HeadSettings = HeadSettings()

    def objective(self, site: Site) -> Objective | None:
        heads = [
            make_head(self.head, site.shape, site.classes, site.target_shape)
            for _ in range(self.groups)
        ]
        return GroupClassifiers(heads, site.shape, self.diversity)
