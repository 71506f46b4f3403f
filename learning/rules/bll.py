"""Block-local learning with probabilistic latents (Kappel et al. 2023, arXiv 2305.14974).

The local loss is the evidence E6 in closed form, derived in docs/rules/bll.md.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from learning.bounds import Fraction, Length
from learning.learners.feedback import FeedbackSettings
from learning.objectives.base import Bootstrap, Evidence, Objective
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import Candidates, EvidenceLoss, TableLoss
from learning.rules.base import Rule, Site
from learning.settings import Settings


class BootstrapSettings(Settings):
    """Posterior bootstrapping: a share of samples goes on from the posterior, annealed to 0."""

    share: Fraction = Field(default=0.0, description="share of samples at step 0")
    until: Length = Field(default=0.5, description="share of all steps after which it is 0")


class BLL(Rule):
    """Every block's output is a latent's natural parameters; a feedback network tells it of y."""

    kind: Literal["bll"] = "bll"
    latent: LatentSettings = LatentSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    bootstrap: BootstrapSettings = BootstrapSettings()
    candidates: Candidates = Field(
        default="all", description="labels that compete in training: all, or those of the shard"
    )

    def objective(self, site: Site) -> Objective | None:
        until = max(1, round(self.bootstrap.until * site.steps))
        return Evidence(
            self.latent,
            site.shape,
            Bootstrap(self.bootstrap.share, until),
            per_token=bool(site.target_shape),
            candidates=self.candidates,
        )

    def table_loss(self, readout: Readout) -> TableLoss:
        return EvidenceLoss(readout.family, readout.temperature, self.candidates)

    @model_validator(mode="after")
    def _posterior_is_in_reach(self) -> Self:
        if self.bootstrap.share and self.latent.convolution is not None:
            raise ValueError(
                f"rule.bootstrap.share = {self.bootstrap.share:g} needs a readout that can be "
                f"undone, but rule.latent.convolution = {self.latent.convolution}: set share "
                "to 0 or convolution to null"
            )
        return self

    @property
    def feedback_network(self) -> tuple[FeedbackSettings, LatentSettings] | None:
        return self.feedback, self.latent
