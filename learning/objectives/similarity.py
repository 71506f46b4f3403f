"""Similarity matching: samples of one class should look alike, those of others should not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.objectives.base import Assessment, Objective, Told, classification_loss, wide
from learning.objectives.heads import PooledLinear, TokenLinear


def similarity(features: Tensor) -> Tensor:
    """Adjusted cosine similarities of samples: (B, ...) to (B, B), within [-1, 1].

    Maps (B, C, H, W) are first reduced to each channel's deviation over space; one pixel, or three
    channels at most, leave too little and are flattened instead. Tokens (B, T, D) are positions in
    space. Then each sample is centred over its features and divided by its norm.
    """
    if features.dim() == 3:
        features = features.transpose(1, 2)  # (B, D, T)
    if features.dim() > 2:
        maps = features.flatten(2)
        several = maps.shape[1] > 3 and maps.shape[2] > 1
        features = maps.std(dim=2) if several else maps.flatten(1)
    centred = features - features.mean(1, keepdim=True)
    # This norm has a gradient at zero, where a sample has no features at all.
    normed = centred / (1e-8 + torch.linalg.vector_norm(centred, dim=1, keepdim=True))
    return (normed @ normed.T).clamp(-1, 1)


def prediction_head(
    shape: tuple[int, ...], classes: int, dim: int, *, per_token: bool
) -> PooledLinear | TokenLinear:
    """A linear classifier of at most `dim` pooled features (never less than the channels).

    Its weights start at zero, as in the paper.
    """
    if len(shape) == 2:
        head = TokenLinear(shape, classes, per_token=per_token)
    else:
        rows, columns = shape[1:] if len(shape) == 3 else (1, 1)
        while shape[0] * rows * columns > dim and rows * columns > 1:
            if rows >= columns:
                rows = math.ceil(rows / 2)
            else:
                columns = math.ceil(columns / 2)
        head = PooledLinear(shape, classes, (rows, columns))
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    return head


class PredictionAndSimilarity(Objective):
    """(1 - beta) cross-entropy + beta ||S(c(h)) - S(onehot y)||^2 / b^2, for each sample.

    Nøkland & Eidnes 2019, arXiv 1901.06656. c is a 3x3 convolution or a linear layer. The paper's
    similarity loss is a mean over the pairs of a batch; times the samples of a shard it is a sum
    over samples like every loss here, and the mean again after the update's division.

    With beta = 0 it is the cross-entropy alone. With beta = 1 the classifier only watches: it
    learns, but nothing of it reaches the block.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        beta: float,
        dim: int,
        per_token: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.beta = classes, beta
        self.head = prediction_head(shape, classes, dim, per_token=per_token)
        self.embed: nn.Module | None = None
        if beta > 0 and len(shape) == 3:
            self.embed = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
        elif beta > 0:
            self.embed = nn.Linear(shape[-1], shape[-1], bias=False)

    def forward(self, h: Tensor, told: Told) -> Assessment:
        watching = self.beta == 1
        scores = wide(self.head(h.detach() if watching else h))
        predicted = classification_loss(scores, told.y)
        if self.embed is None:
            return Assessment(predicted, scores)
        features = wide(self.embed(h))
        with torch.autocast(h.device.type, enabled=False):
            target = F.one_hot(told.y, self.classes).to(features.dtype)
            matched = len(h) * F.mse_loss(similarity(features), similarity(target))
        if watching:
            # Its gradient without its value: the loss is what the block learns from.
            return Assessment(matched + (predicted - predicted.detach()), scores)
        return Assessment((1 - self.beta) * predicted + self.beta * matched, scores)
