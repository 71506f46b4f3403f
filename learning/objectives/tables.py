"""Losses between a block's readout and the table of its feedback module; both learn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.messages import Message
from learning.objectives.latents import Family, label_loss

Candidates = Literal["all", "batch"]


class TableLoss(nn.Module, ABC):
    """Compares readouts with the row of each label; it has no parameters.

    The block takes its gradient with respect to the readout, the feedback module with respect to
    the table.
    """

    @abstractmethod
    def forward(self, a: Tensor, table: Message, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the readouts `a` with the table.

        Args:
            a: (b, U, P); with one label a token (b * T, U, P), a sample's tokens in order.
            table: natural parameters `b` (C, U, P) and label bias `c` (C,).
            y: labels (b,), or one a token (b, T).

        Returns:
            The sum over samples of their losses, (), and the scores of all labels, (b, C) or
            (b * T, C). A sample of many tokens counts the mean over them.
        """


class EvidenceLoss(TableLoss):
    """E6: minus the log evidence of the right label, normalised over labels (BLL).

    `candidates` are the labels that it is normalised over in training: all, or those of the shard.
    """

    def __init__(self, family: Family, temperature: float, candidates: Candidates = "all") -> None:
        super().__init__()
        self.family, self.temperature, self.candidates = family, temperature, candidates

    def forward(self, a: Tensor, table: Message, y: Tensor) -> tuple[Tensor, Tensor]:
        score, bias, labels = self.family.score(a, table["b"]), table["c"], y.flatten()
        scores = bias + self.temperature * score.detach()
        if self.candidates == "batch" and self.training:
            absent = torch.ones(len(bias), dtype=torch.bool, device=y.device)
            absent[labels] = False
            bias = bias.masked_fill(absent, float("-inf"))
        loss = label_loss(score, bias, labels, self.temperature)
        return (loss if y.dim() == 1 else loss / y[0].numel()), scores


class CosineLoss(TableLoss):
    """Mean over samples i and labels c of (cos(a_i, b(c)) - [y_i = c])^2, times the samples (CCL).

    Kao & Hariharan 2024 (counter-current learning, NeurIPS 2024), whose code compares every sample
    with one row a label, each label as much as another: (N, C) cosines.
    """

    def forward(self, a: Tensor, table: Message, y: Tensor) -> tuple[Tensor, Tensor]:
        rows = F.normalize(table["b"].flatten(1), dim=-1)
        cosines = F.normalize(a.flatten(1), dim=-1) @ rows.T
        same = F.one_hot(y.flatten(), len(rows)).to(cosines.dtype)
        return (cosines - same).square().mean() * len(y), cosines.detach()
