"""Objectives: the loss of one block and the auxiliary network it owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.latents import label_loss
from learning.messages import Message, outgoing
from learning.readout import LatentSettings, Readout


@dataclass
class Assessment:
    """What an objective says of one shard.

    Attributes:
        loss: sum of the per-sample losses, a scalar with a graph.
        scores: class scores (b, classes) for the block's own accuracy.
        readout: the message for the block's feedback module, or None.
    """

    loss: Tensor
    scores: Tensor
    readout: Message | None = None


class Objective(nn.Module, ABC):
    """The local loss of one block; its parameters are the auxiliary network."""

    needs_feedback = False

    @abstractmethod
    def forward(self, h: Tensor, y: Tensor, feedback: Message | None) -> Assessment:
        """Assess the block's output h (b, ...) against labels y (b,)."""

    def mixes(self, step: int) -> bool:
        """Whether `send_on` changes anything at `step`; only then does a forward need feedback."""
        return False

    def send_on(self, h: Tensor, y: Tensor, feedback: Message, step: int) -> Tensor:
        """What the next block receives in training instead of the block's output."""
        return h


class TaskLoss(Objective):
    """Cross-entropy of the network's own output: the objective of block K under every rule."""

    def forward(self, h: Tensor, y: Tensor, feedback: Message | None) -> Assessment:
        scores = h if h.dtype == torch.float64 else h.float()
        return Assessment(F.cross_entropy(scores, y, reduction="sum"), scores)


class AuxiliaryClassifier(Objective):
    """Cross-entropy of an auxiliary head (Belilovsky et al. 2020, DGL)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, y: Tensor, feedback: Message | None) -> Assessment:
        scores = self.head(h)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return Assessment(F.cross_entropy(scores, y, reduction="sum"), scores)


class Evidence(Objective):
    """E6: minus the log evidence of the right label, normalised over labels (BLL).

    The table b(y) and the bias c come from the feedback module and are constants here; the
    feedback module learns from the readout that this objective sends it.
    """

    needs_feedback = True

    def __init__(
        self, latent: LatentSettings, shape: tuple[int, ...], bootstrap: Bootstrap | None = None
    ) -> None:
        super().__init__()
        self.readout = Readout(latent, shape)
        self.bootstrap = bootstrap

    def forward(self, h: Tensor, y: Tensor, feedback: Message | None) -> Assessment:
        assert feedback is not None
        a = self.readout(h)
        with torch.autocast(h.device.type, enabled=False):
            score = self.readout.family.score(a, feedback["b"].to(a.dtype))
            bias = feedback["c"].to(a.dtype)
            loss = label_loss(score, bias, y, self.readout.temperature)
        scores = bias + self.readout.temperature * score.detach()
        return Assessment(loss, scores, {"a": outgoing(a), "y": y})

    def mixes(self, step: int) -> bool:
        """Whether some samples go on from the posterior at `step`."""
        return self.bootstrap is not None and self.bootstrap.at(step) > 0

    @torch.no_grad()
    def send_on(self, h: Tensor, y: Tensor, feedback: Message, step: int) -> Tensor:
        """Posterior bootstrapping: a share of the samples goes on from the posterior."""
        assert self.bootstrap is not None
        chosen = torch.rand(len(h), device=h.device) < self.bootstrap.at(step)
        moved = self.readout.posterior(h, feedback["b"][y])
        return torch.where(chosen.view(-1, *[1] * (h.dim() - 1)), moved, h)


@dataclass(frozen=True)
class Bootstrap:
    """The share of samples that go on from the posterior: linear from `share` to 0 at `until`."""

    share: float
    until: int

    def at(self, step: int) -> float:
        """The share at `step`."""
        return self.share * max(0.0, 1 - step / self.until)
