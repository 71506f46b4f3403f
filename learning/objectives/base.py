"""Objectives: the loss of one block and the auxiliary network it owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.messages import Message, outgoing
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import Candidates, EvidenceLoss, TableLoss


@dataclass(frozen=True)
class Told:
    """What an objective is told besides the block's output.

    Attributes:
        y: labels (b,), or one a token (b, T).
        table: the message of the block's feedback module, where the rule has one.
        image: the network's input (b, ...), where the rule sends it along.
    """

    y: Tensor
    table: Message | None = None
    image: Tensor | None = None


@dataclass
class Assessment:
    """What an objective says of one shard.

    Attributes:
        loss: sum of the per-sample losses, a scalar with a graph.
        scores: class scores (b, classes), or (b, T, classes), for the block's own accuracy.
        readout: the message for the block's feedback module, or None.
    """

    loss: Tensor
    scores: Tensor
    readout: Message | None = None


class Objective(nn.Module, ABC):
    """The local loss of one block; its parameters are the auxiliary network."""

    needs_feedback = False

    @abstractmethod
    def forward(self, h: Tensor, told: Told) -> Assessment:
        """Assess the block's output h (b, ...)."""

    def take(self, weights: Message) -> None:
        """Take the state of another block's unit, for objectives that read one."""
        raise AssertionError("this objective reads no weights")

    def mixes(self, step: int) -> bool:
        """Whether `send_on` changes anything at `step`; only then does a forward need feedback."""
        return False

    def send_on(self, h: Tensor, y: Tensor, feedback: Message, step: int) -> Tensor:
        """What the next block receives in training instead of the block's output."""
        return h


def wide(h: Tensor) -> Tensor:
    """The same numbers in float32, or float64 where they are."""
    return h if h.dtype == torch.float64 else h.float()


def classification_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Sum over samples of the cross-entropy; a sample of many tokens counts their mean.

    Shapes (b, C) and (b,), or (b, T, C) and (b, T), to ().
    """
    if y.dim() == 1:
        return F.cross_entropy(scores, y, reduction="sum")
    return F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="sum") / y[0].numel()


class TaskLoss(Objective):
    """Cross-entropy of the network's own output: the objective of block K under every rule."""

    def forward(self, h: Tensor, told: Told) -> Assessment:
        scores = wide(h)
        return Assessment(classification_loss(scores, told.y), scores)


class AuxiliaryClassifier(Objective):
    """Cross-entropy of an auxiliary head (Belilovsky et al. 2020, DGL)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, told: Told) -> Assessment:
        scores = wide(self.head(h))
        return Assessment(classification_loss(scores, told.y), scores)


def assess_table(readout: Readout, compare: TableLoss, h: Tensor, told: Told) -> Assessment:
    """Read h (b, ...) out, compare it with the table, and tell the feedback module."""
    assert told.table is not None
    a = readout(h)
    with torch.autocast(h.device.type, enabled=False):
        table = {name: tensor.to(a.dtype) for name, tensor in told.table.items()}
        loss, scores = compare(a, table, told.y)
    # One a token: (b * T, C) to (b, T, C).
    return Assessment(loss, scores.unflatten(0, told.y.shape), {"a": outgoing(a), "y": told.y})


class Evidence(Objective):
    """E6: minus the log evidence of the right label, normalised over labels (BLL).

    The table b(y) and the bias c come from the feedback module and are constants here; the
    feedback module learns from the readout that this objective sends it.
    """

    needs_feedback = True

    def __init__(
        self,
        latent: LatentSettings,
        shape: tuple[int, ...],
        bootstrap: Bootstrap | None = None,
        *,
        per_token: bool = False,
        candidates: Candidates = "all",
    ) -> None:
        super().__init__()
        self.readout = Readout(latent, shape, per_token=per_token)
        self.compare = EvidenceLoss(self.readout.family, self.readout.temperature, candidates)
        self.bootstrap = bootstrap

    def forward(self, h: Tensor, told: Told) -> Assessment:
        return assess_table(self.readout, self.compare, h, told)

    def mixes(self, step: int) -> bool:
        """Whether some samples go on from the posterior at `step`."""
        return self.bootstrap is not None and self.bootstrap.at(step) > 0

    @torch.no_grad()
    def send_on(self, h: Tensor, y: Tensor, feedback: Message, step: int) -> Tensor:
        """Posterior bootstrapping: a share of the samples goes on from the posterior."""
        assert self.bootstrap is not None
        chosen = torch.rand(len(h), device=h.device) < self.bootstrap.at(step)
        moved = self.readout.posterior(h, feedback["b"][y.flatten()])
        return torch.where(chosen.view(-1, *[1] * (h.dim() - 1)), moved, h)


@dataclass(frozen=True)
class Bootstrap:
    """The share of samples that go on from the posterior: linear from `share` to 0 at `until`."""

    share: float
    until: int

    def at(self, step: int) -> float:
        """The share at `step`."""
        return self.share * max(0.0, 1 - step / self.until)
