"""What a rule is: an objective for each block, a credit, and possibly a feedback network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from learning.credit import LOCAL, Hop
from learning.feedback import FeedbackSettings
from learning.objectives import Objective
from learning.readout import LatentSettings
from learning.settings import Settings


class Rule(Settings, ABC):
    """The settings of a rule and what they mean; a subclass has a literal field `kind`.

    Block K always has the task loss as its objective: `objective` is asked for blocks 1..K-1.

    `order` is how forwards and backwards interleave over shards where gradients come back from
    later blocks: all forwards first (`gpipe`, Huang et al. 2019) or one forward one backward
    (`1f1b`, Narayanan et al. 2019). Both compute the same bits.
    """

    order: Literal["gpipe", "1f1b"] = "1f1b"

    @property
    def credit(self) -> Hop:
        """Which losses reach which parameters."""
        return LOCAL

    @abstractmethod
    def objective(self, shape: tuple[int, ...], classes: int, steps: int) -> Objective | None:
        """The objective of a block whose output has `shape`; None when it has no own loss."""

    @property
    def feedback_network(self) -> tuple[FeedbackSettings, LatentSettings] | None:
        """The feedback network and the latents it informs, or None."""
        return None
