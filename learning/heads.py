"""Auxiliary networks: small classifiers that give a block a loss of its own."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learning.settings import Settings


class HeadSettings(Settings):
    """An auxiliary classifier.

    `linear`: global average pooling and a linear layer. `conv`: pooling to at most `pool` x `pool`,
    then `depth` times 3x3 convolution, batch norm, ReLU (stride 2 first), pooling, linear. On
    vectors `conv` is a hidden layer of `width` with batch norm instead.
    """

    kind: Literal["linear", "conv"] = "linear"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=1, ge=1)
    pool: int = Field(default=16, ge=2)


class LinearHead(nn.Module):
    """(B, C, H, W) or (B, D) to class scores (B, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h.mean(dim=tuple(range(2, h.dim()))) if h.dim() > 2 else h)


class ConvHead(nn.Module):
    """(B, C, H, W) to class scores (B, classes) through convolutions of its own."""

    def __init__(self, settings: HeadSettings, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.pool = (min(settings.pool, shape[1]), min(settings.pool, shape[2]))
        layers: list[nn.Module] = []
        size = shape[0]
        for i in range(settings.depth):
            conv = nn.Conv2d(
                size, settings.width, 3, stride=2 if i == 0 else 1, padding=1, bias=False
            )
            layers += [conv, nn.BatchNorm2d(settings.width), nn.ReLU()]
            size = settings.width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(size, classes)

    def forward(self, h: Tensor) -> Tensor:
        features = self.features(F.adaptive_avg_pool2d(h, self.pool))
        return self.linear(features.mean(dim=(2, 3)))


def make_head(settings: HeadSettings, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the head for activations of `shape` (without batch)."""
    if settings.kind == "linear":
        return LinearHead(shape, classes)
    if len(shape) == 3:
        return ConvHead(settings, shape, classes)
    hidden = nn.Linear(shape[0], settings.width, bias=False)
    norm = nn.BatchNorm1d(settings.width)
    return nn.Sequential(hidden, norm, nn.ReLU(), nn.Linear(settings.width, classes))
