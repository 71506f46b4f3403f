"""A block's view of the next one: a slowly moving copy of the first unit behind it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from learning.messages import Message
from learning.objectives.base import Assessment, Objective, Told, classification_loss, wide


class MomentumClassifier(Objective):
    """Cross-entropy of a head on LB(h) + E(h).

    Momentum auxiliary network (Su et al. 2024, ECCV, arXiv 2407.05623). E is a moving average of
    the next block's first unit, LB a trainable unit of the same architecture (the learnable bias).
    The loss's gradient goes through E to h, but E does not learn from it.

    Only E's parameters average over the next block's. Its buffers are its own: in training batch
    normalisation in E uses the statistics of the batch, and its running ones follow them.

    Args:
        head: reads what the unit makes of h.
        unit: of which E starts as a copy; None where there is none, and the head reads h.
        bias: LB, None with `unit`.
        decay: the share of E that stays when weights arrive.
    """

    def __init__(
        self, head: nn.Module, unit: nn.Module | None, bias: nn.Module | None, decay: float
    ) -> None:
        super().__init__()
        self.head, self.bias, self.decay = head, bias, decay
        self.average = copy.deepcopy(unit)
        if self.average is not None:
            self.average.train().requires_grad_(False)

    def forward(self, h: Tensor, told: Told) -> Assessment:
        if self.bias is not None and self.average is not None:
            h = self.bias(h) + self.average(h)
        scores = wide(self.head(h))
        return Assessment(classification_loss(scores, told.y), scores)

    @torch.no_grad()
    def take(self, weights: Message) -> None:
        """Move the average by 1 - decay of the way to the unit's weights."""
        if self.average is None:
            return
        for name, parameter in self.average.named_parameters():
            parameter.lerp_(weights[name].to(parameter.dtype), 1 - self.decay)
