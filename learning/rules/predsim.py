"""Local errors of prediction and similarity (Nøkland & Eidnes 2019, arXiv 1901.06656)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.bounds import Fraction, Width
from learning.errors import UserError
from learning.objectives.base import Objective
from learning.objectives.similarity import PredictionAndSimilarity
from learning.rules.base import Rule, Site


class PredSim(Rule):
    """Each block predicts the label, and makes samples as similar as their labels are."""

    kind: Literal["predsim"] = "predsim"
    mode: Literal["pred", "sim", "both"] = Field(
        default="both", description="prediction, similarity, or both"
    )
    beta: Fraction = Field(default=0.99, description="weight of similarity in `both`")
    dim: Width = Field(default=4096, description="most features that the prediction reads")

    @property
    def similarity_weight(self) -> float:
        """The weight of the similarity loss in the mode."""
        return {"pred": 0.0, "sim": 1.0, "both": self.beta}[self.mode]

    @property
    def batch_coupled(self) -> bool:
        return self.similarity_weight > 0

    def objective(self, site: Site) -> Objective | None:
        if site.target_shape and self.batch_coupled:
            raise UserError(
                f"rule.mode = {self.mode} compares samples that have one label each, not one a "
                "token: use rule.mode = pred or another rule.kind"
            )
        return PredictionAndSimilarity(
            site.shape,
            site.classes,
            beta=self.similarity_weight,
            dim=self.dim,
            per_token=bool(site.target_shape),
        )
