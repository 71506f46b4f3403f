"""Augmented local learning (Ma et al. 2024, ICLR, arXiv 2402.17318)."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from learning.bounds import DepthFrom0, Fraction
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.objectives.patterns import glued, input_shapes, output_shape
from learning.rules.base import Rule, Site


class AugLocal(Rule):
    """Local learning whose auxiliary networks have the architecture of later units.

    They are picked uniformly from the units after the block, the network's last one left out, and
    get weights of their own. Later blocks get fewer of them (a pyramid).
    """

    looks_ahead: ClassVar[bool] = True

    kind: Literal["auglocal"] = "auglocal"
    depth: DepthFrom0 = Field(
        default=2, description="units in the auxiliary network of block 1; 0 is local"
    )
    slope: Fraction = Field(default=0.5, description="how fast depth falls to 1; 0: not at all")
    head: HeadSettings = HeadSettings()

    def depth_of(self, index: int, last: int) -> int:
        """Units in the auxiliary network of block `index` of `last`, as far as there are any."""
        if self.depth == 0:
            return 0
        # In the order of operations of the authors' code, which decides what is a tie.
        way = (index - 1) * self.slope / (last - 2) if last > 2 else 0.0
        return max(1, round(self.depth * (1 - way) + way))

    def objective(self, site: Site) -> Objective | None:
        later = [unit for block in site.later for unit in block][:-1]
        depth = min(self.depth_of(site.index, site.last), len(later))
        shape, layers = site.shape, OrderedDict[str, nn.Module]()
        if depth:
            shapes = input_shapes(later, site.shape)
            first = later[0].position
            picks = [i - first for i in picked(first - 1, len(later), depth)]
            features = glued([later[i] for i in picks], [shapes[i] for i in picks], site.shape)
            layers["features"] = features
            shape = output_shape(features, site.shape)
        layers["linear"] = make_head(self.head, shape, site.classes, site.target_shape)
        return AuxiliaryClassifier(nn.Sequential(layers))


def picked(at: int, later: int, depth: int) -> list[int]:
    """Which `depth` of the `later` units behind unit `at` are copied, numbered in the network.

    Evenly spaced, the last one among them; ties go to the even number, as in the authors' code
    (Ma et al. 2024), which rounds positions in the network and not distances from `at`.
    """
    return [round(at + later / depth * i) for i in range(1, depth + 1)]
