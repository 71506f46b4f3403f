"""Auxiliary networks: small classifiers that give a block a loss of its own."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learning.errors import UserError
from learning.settings import Settings


class HeadSettings(Settings):
    """An auxiliary classifier.

    `linear`: average pooling to `grid` x `grid` and a linear layer. `conv`: pooling to at most
    `pool` x `pool` and `depth` times 3x3 convolution, batch norm, ReLU (stride 2 first) before it.
    On vectors `conv` is a hidden layer of `width` with batch norm instead.
    """

    kind: Literal["linear", "conv"] = "linear"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=1, ge=1)
    pool: int = Field(default=16, ge=2)
    grid: int = Field(
        default=1, ge=1, description="images are pooled to grid x grid before the linear layer"
    )


class PooledLinear(nn.Module):
    """Pooling to a grid and a linear layer: (B, C, H, W) or (B, D) to scores (B, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int, grid: int) -> None:
        super().__init__()
        image = len(shape) == 3
        self.grid = (min(grid, shape[1]), min(grid, shape[2])) if image else None
        cells = math.prod(self.grid) if self.grid else 1
        self.linear = nn.Linear(shape[0] * cells, classes)

    def forward(self, h: Tensor) -> Tensor:
        if self.grid is not None:
            return self.linear(F.adaptive_avg_pool2d(h, self.grid).flatten(1))
        return self.linear(h.mean(dim=tuple(range(2, h.dim()))) if h.dim() > 2 else h)


def conv_features(shape: tuple[int, ...], width: int, depth: int, pool: int) -> nn.Sequential:
    """Pooling to at most pool x pool, then `depth` times 3x3 convolution, batch norm, ReLU.

    The first convolution has stride 2: (B, C, H, W) to (B, width, H', W').
    """
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((min(pool, shape[1]), min(pool, shape[2])))]
    size = shape[0]
    for i in range(depth):
        # On one pixel both strides are the same function, but there torch 2.13 leaves a part of the
        # bfloat16 weight gradient of stride 2 uninitialised.
        stride = 2 if i == 0 and max(shape[1:]) > 1 else 1
        conv = nn.Conv2d(size, width, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers)


def make_head(settings: HeadSettings, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the head for activations of `shape` (without batch)."""
    if settings.kind == "linear":
        return PooledLinear(shape, classes, settings.grid)
    if len(shape) == 3:
        features = conv_features(shape, settings.width, settings.depth, settings.pool)
        cells = (
            math.ceil(min(settings.pool, shape[1]) / 2),
            math.ceil(min(settings.pool, shape[2]) / 2),
        )
        linear = PooledLinear((settings.width, *cells), classes, settings.grid)
    elif len(shape) != 1:
        raise UserError(
            f"rule.head.kind = conv reads activations of shape (features,) or (channels, height, "
            f"width), not {shape}: cut the network at another unit or use rule.head.kind = linear"
        )
    else:
        features = nn.Sequential(
            nn.Linear(shape[0], settings.width, bias=False),
            nn.BatchNorm1d(settings.width),
            nn.ReLU(),
        )
        linear = PooledLinear((settings.width,), classes, settings.grid)
    return nn.Sequential(OrderedDict(features=features, linear=linear))
