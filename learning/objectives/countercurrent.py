"""Counter-current learning: activations and the feedback network's tables meet half-way."""

from __future__ import annotations

from torch import Tensor

from learning.objectives.base import Assessment, Objective, Told, assess_table
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import CosineLoss


class CounterCurrent(Objective):
    """Mean over samples i and labels c of (cos(a_i, b(c)) - [y_i = c])^2.

    Kao & Hariharan 2024, arXiv 2409.19841. a (b, U, 1) is the readout of the block's output, b the
    table of its feedback module, a constant here. The scores of a label are the cosines.
    """

    needs_feedback = True

    def __init__(
        self, latent: LatentSettings, shape: tuple[int, ...], *, per_token: bool = False
    ) -> None:
        super().__init__()
        self.readout = Readout(latent, shape, per_token=per_token)
        self.compare = CosineLoss()

    def forward(self, h: Tensor, told: Told) -> Assessment:
        return assess_table(self.readout, self.compare, h, told)
