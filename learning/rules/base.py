"""What a rule is: an objective for each block, a credit, and possibly a feedback network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from learning.credit import LOCAL, Credit
from learning.learners.feedback import FeedbackSettings
from learning.learners.publishing import Reading
from learning.objectives.base import Objective
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import TableLoss
from learning.settings import Settings
from learning.units import Unit


@dataclass(frozen=True)
class Site:
    """Where an objective stands.

    Attributes:
        index: the block, 1 <= index < last.
        last: number of blocks.
        shape: of the block's output, without batch.
        input_shape: of the network's input, without batch.
        target_shape: of a sample's labels: () or, for one a token, (T,).
        classes: labels are 0..classes-1.
        steps: steps of the run.
        later: units of blocks index+1..last, for rules that look ahead: patterns to copy.
    """

    index: int
    last: int
    shape: tuple[int, ...]
    classes: int
    steps: int
    input_shape: tuple[int, ...] = ()
    target_shape: tuple[int, ...] = ()
    later: Sequence[Sequence[Unit]] = ()


class Rule(Settings, ABC):
    """The settings of a rule and what they mean; a subclass has a literal field `kind`.

    Block K always has the task loss as its objective: `objective` is asked for blocks 1..K-1.

    `order` is how forwards and backwards interleave over shards where gradients come back from
    later blocks: all forwards first (`gpipe`, Huang et al. 2019) or one forward one backward
    (`1f1b`, Narayanan et al. 2019). Both compute the same bits.
    """

    order: Literal["gpipe", "1f1b"] = "1f1b"

    looks_ahead: ClassVar[bool] = False
    """Whether objectives are made after the pattern of later blocks' units."""
    needs_image: ClassVar[bool] = False
    """Whether objectives read the network's input, which then goes along with the activations."""

    @property
    def credit(self) -> Credit:
        """Which losses reach which parameters."""
        return LOCAL

    @abstractmethod
    def objective(self, site: Site) -> Objective | None:
        """The objective of a block; None when it has no loss of its own."""

    @property
    def feedback_network(self) -> tuple[FeedbackSettings, LatentSettings] | None:
        """The feedback network and the latents it informs, or None."""
        return None

    def table_loss(self, readout: Readout) -> TableLoss:
        """What a block's readout and its table are compared by, for rules that have tables.

        The block learns from it, and so does the feedback module.
        """
        raise AssertionError("this rule has no feedback network")

    @property
    def batch_coupled(self) -> bool:
        """Whether a loss compares the samples of a batch with each other."""
        return False

    @property
    def slots(self) -> int:
        """Messages that a block keeps to learn from again; 0 learns from each once."""
        return 0

    def readings(self, last: int) -> Sequence[Reading]:
        """Which objectives read which block's weights."""
        return ()
