"""End-to-end backpropagation through all blocks: the honest baseline."""

from __future__ import annotations

from typing import Literal

from learning.credit import END_TO_END, Hop
from learning.objectives.base import Objective
from learning.rules.base import Rule, Site


class Backprop(Rule):
    """True gradients of the task loss, passed from block to block."""

    kind: Literal["backprop"] = "backprop"

    @property
    def credit(self) -> Hop:
        return END_TO_END

    def objective(self, site: Site) -> Objective | None:
        return None
