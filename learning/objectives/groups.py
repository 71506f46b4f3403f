"""Groups of channels: each has a head and a loss of its own."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.alignment import channel_dim
from learning.errors import UserError
from learning.objectives.base import Assessment, Objective, Told, classification_loss, wide

TEMPERATURE = 3.0


def diversity(scores: Tensor, y: Tensor) -> Tensor:
    """How alike the heads err: mean over pairs of heads of the cosine of their distributions.

    The distributions are softmaxes at temperature 3 with the right label's entry taken out.
    Shapes (G, N, C) and (N,) to (N,); 0 for one head.
    """
    if len(scores) < 2:
        return scores.new_zeros(len(y))
    shares = torch.softmax(scores / TEMPERATURE, -1)
    wrong = shares.masked_fill(F.one_hot(y, scores.shape[-1]).bool(), 0.0)
    pairs = [
        F.cosine_similarity(wrong[i], wrong[j], dim=-1)
        for i, j in combinations(range(len(wrong)), 2)
    ]
    return torch.stack(pairs).mean(0)


class GroupClassifiers(Objective):
    """Mean cross-entropy of one head a group of channels, plus a penalty on heads that agree.

    Patel, Eickenberg & Belilovsky 2023, arXiv 2301.07635. Head i reads all channels, but only
    those of group i carry its gradient. The scores are those of the ensemble: the mean of the
    heads' log-probabilities.
    """

    def __init__(self, heads: list[nn.Module], shape: tuple[int, ...], weight: float) -> None:
        super().__init__()
        self.heads, self.weight = nn.ModuleList(heads), weight
        self.dim = channel_dim(shape)
        channels = shape[self.dim - 1]
        if len(heads) > channels:
            raise UserError(
                f"rule.groups = {len(heads)} is more than the {channels} channels of a block's "
                "output: lower it"
            )
        sizes = [len(part) for part in torch.arange(channels).tensor_split(len(heads))]
        self.sizes = sizes

    def forward(self, h: Tensor, told: Told) -> Assessment:
        groups = h.split(self.sizes, self.dim)
        scores = []
        for i, head in enumerate(self.heads):
            seen = [g if i == j else g.detach() for j, g in enumerate(groups)]
            scores.append(wide(head(torch.cat(seen, self.dim))))
        loss = torch.stack([classification_loss(s, told.y) for s in scores]).sum() / len(scores)
        if self.weight and len(scores) > 1:
            flat = torch.stack([s.flatten(0, -2) for s in scores])
            penalty = diversity(flat, told.y.flatten()).sum() / told.y[0].numel()
            loss = loss + self.weight * penalty
        logs = torch.stack([s.detach().log_softmax(-1) for s in scores])
        return Assessment(loss, logs.mean(0))
