"""Counter-current learning (Kao & Hariharan 2024, NeurIPS, arXiv 2409.19841)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Pixels
from learning.learners.feedback import FeedbackSettings
from learning.objectives.base import Objective
from learning.objectives.countercurrent import CounterCurrent
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import CosineLoss, TableLoss
from learning.rules.base import Rule, Site
from learning.settings import Settings


class PoolingSettings(Settings):
    """How a block's output is read out before it is compared with the table."""

    grid: Pixels = Field(default=2, description="images are pooled to grid x grid")
    normalization: Literal["batch", "none"] = "batch"


class CounterCurrentLearning(Rule):
    """Two networks, one from the input and one from the labels, learn to agree at each block."""

    kind: Literal["ccl"] = "ccl"
    pooling: PoolingSettings = PoolingSettings()
    feedback: FeedbackSettings = FeedbackSettings()

    @property
    def latent(self) -> LatentSettings:
        """The readout as that of a latent, of which only the coordinates are used."""
        return LatentSettings(grid=self.pooling.grid, normalization=self.pooling.normalization)

    def objective(self, site: Site) -> Objective | None:
        return CounterCurrent(self.latent, site.shape, per_token=bool(site.target_shape))

    def table_loss(self, readout: Readout) -> TableLoss:
        return CosineLoss()

    @property
    def feedback_network(self) -> tuple[FeedbackSettings, LatentSettings] | None:
        return self.feedback, self.latent
