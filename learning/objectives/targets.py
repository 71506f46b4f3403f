"""Direct random target projection: a fixed random direction for every label."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learning.alignment import channel_dim, spread
from learning.objectives.base import Assessment, Objective, Told


class TargetProjection(Objective):
    """The loss -<h, B[y]>, whose gradient at h is the projected target itself, up to its sign.

    Frenkel et al. 2021, arXiv 1909.01311. B (C, D) has entries of variance 1/C and does not learn.
    A label for many positions is the same at each, divided by their number. The scores are those
    of the directions, <mean position of h, B[c]>.
    """

    fixed_buffers = ("directions",)
    directions: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.shape, self.dim = shape, channel_dim(shape)
        directions = torch.randn(classes, shape[self.dim - 1]) / math.sqrt(classes)
        self.register_buffer("directions", directions)

    def forward(self, h: Tensor, told: Told) -> Assessment:
        h = h.to(self.directions.dtype)
        per_token = told.y.dim() > 1
        target = self.directions[told.y]
        if per_token:
            loss = -(h * target).sum() / told.y.shape[1]
        else:
            loss = -(h * spread(target, self.shape)).sum()
        positions = [d for d in range(1, h.dim()) if d != self.dim] if not per_token else []
        features = h.mean(positions) if positions else h
        return Assessment(loss, features.detach() @ self.directions.T)
