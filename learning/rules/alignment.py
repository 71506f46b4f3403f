"""Feedback alignment at block boundaries, and direct feedback alignment."""

from __future__ import annotations

from typing import Literal

from learning.alignment import BoundaryAlignment, Broadcast, MapKind
from learning.credit import LOCAL, Credit
from learning.objectives.base import Objective
from learning.objectives.targets import TargetProjection
from learning.rules.base import Rule, Site


class Alignment(Rule):
    """Backprop with a fixed map on the gradient at every boundary (Lillicrap et al. 2016).

    Inside a block the gradient is true. `sign-symmetric` keeps signs and randomises magnitudes
    (Xiao et al. 2019, arXiv 1811.03567); `identity` is backprop. Derived: the boundary form.
    """

    kind: Literal["alignment"] = "alignment"
    map: MapKind = "random"

    @property
    def credit(self) -> Credit:
        return BoundaryAlignment(self.map)

    def objective(self, site: Site) -> Objective | None:
        return None


class DirectAlignment(Rule):
    """Direct feedback alignment (Nøkland 2016, arXiv 1609.01596) at block boundaries.

    The error at the network's output goes to every block, through a fixed random map each.
    """

    kind: Literal["dfa"] = "dfa"

    @property
    def credit(self) -> Credit:
        return Broadcast()

    def objective(self, site: Site) -> Objective | None:
        return None


class TargetAlignment(Rule):
    """Direct random target projection (Frenkel et al. 2021, arXiv 1909.01311): labels, not errors.

    A block learns from a fixed random direction for each label, without any loss of the network.
    """

    kind: Literal["drtp"] = "drtp"

    @property
    def credit(self) -> Credit:
        return LOCAL

    def objective(self, site: Site) -> Objective | None:
        return TargetProjection(site.shape, site.classes)
