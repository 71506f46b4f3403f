"""A block in evaluation: batches run forward, and are tallied by the block's own loss."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from learning.learners.base import Tally
from learning.learners.body import Body
from learning.messages import Message
from learning.objectives.base import Told


@dataclass
class InferringBody(Body):
    """A body that also runs forward in evaluation mode, which leaves its training as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._evaluation: dict[str, Tally] = defaultdict(Tally)

    @torch.no_grad()
    def infer(self, split: str, message: Message, feedback: Message | None = None) -> Message:
        """Run one batch forward in evaluation mode; tallies the block's own loss and accuracy."""
        self.chain.eval()
        if self.objective is not None:
            self.objective.eval()
        message = self._local(message)
        x, y = self.entering(message["x"]), message["y"]
        with self._seeded("infer"), self.numerics.autocast():
            h = self.chain(x)
            if self.objective is not None:
                own = self.numerics.for_own(h)
                assessment = self.objective(own, self._told(message, feedback))
                self._evaluation[split].add(assessment.loss, assessment.scores, y)
                self.objective.train()
        self.modes.train()
        return self.outbox.evaluated(h, message)

    def end_evaluation(self, split: str) -> dict[str, float]:
        """Loss and accuracy over all batches inferred since the last call, {} without a loss."""
        tally = self._evaluation.pop(split, None)
        return tally.means() if tally else {}

    def _told(self, message: Message, feedback: Message | None) -> Told:
        image = self.outbox.input_image(message)
        if image is not None:
            image = self.numerics.for_own(image)
        return Told(message["y"], feedback and self._local(feedback), image)
