"""Local learning of language models through the network's unembedding (SOLO, arXiv 2609.35440)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from learning.bounds import Depth, DepthFrom0, Flag, Steps
from learning.errors import UserError
from learning.learners.publishing import Reading
from learning.objectives.base import Objective
from learning.objectives.heads import transformer_features
from learning.objectives.unembedding import ReadoutKind, UnembeddedClassifier
from learning.rules.base import Rule, Site


class SharedUnembedding(Rule):
    """Each block has transformer blocks of its own, then a copy of the network's unembedding.

    Only the task loss trains the unembedding. `private` and `random` are the paper's ablations.
    """

    kind: Literal["solo"] = "solo"
    readout: ReadoutKind = Field(
        default="shared", description="the network's unembedding, an own one, or a fixed random one"
    )
    blocks: DepthFrom0 = Field(default=1, description="transformer blocks of an auxiliary network")
    heads: Depth = Field(default=4, description="of attention; divides the features of a token")
    causal: Flag = Field(default=True, description="no token sees the ones after it")
    every: Steps = Field(default=1, description="steps from one publication to the next")

    def objective(self, site: Site) -> Objective | None:
        if len(site.shape) != 2:
            raise UserError(
                "rule.kind = solo reads activations of shape (tokens, features), not "
                f"{site.shape}: use network.kind = gpt or vit, or rule.kind = local"
            )
        blocks = transformer_features(site.shape, self.blocks, self.heads, causal=self.causal)
        return UnembeddedClassifier(
            blocks,
            site.shape,
            site.classes,
            kind=self.readout,
            per_token=bool(site.target_shape),
        )

    def readings(self, last: int) -> Sequence[Reading]:
        if self.readout != "shared":
            return ()
        return [Reading(k, last, -1, self.every) for k in range(1, last)]
