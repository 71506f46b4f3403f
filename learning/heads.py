"""Auxiliary networks: small classifiers that give a block a loss of its own."""

from __future__ import annotations

from typing import Literal

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
    rate: float = Field(default=1.0, gt=0, description="factor on the learning rate of the head")


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
        self.features = conv_features(shape, settings.width, settings.depth, settings.pool)
        self.linear = nn.Linear(settings.width, classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(self.features(h).mean(dim=(2, 3)))


def conv_features(shape: tuple[int, ...], width: int, depth: int, pool: int) -> nn.Sequential:
    """Pooling to at most pool x pool, then `depth` times 3x3 convolution, batch norm, ReLU.

    The first convolution has stride 2: (B, C, H, W) to (B, width, H', W').
    """
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((min(pool, shape[1]), min(pool, shape[2])))]
    size = shape[0]
    for i in range(depth):
        stride = 2 if i == 0 else 1
        conv = nn.Conv2d(size, width, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers)


def make_head(settings: HeadSettings, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the head for activations of `shape` (without batch)."""
    if settings.kind == "linear":
        return LinearHead(shape, classes)
    if len(shape) == 3:
        return ConvHead(settings, shape, classes)
    hidden = nn.Linear(shape[0], settings.width, bias=False)
    norm = nn.BatchNorm1d(settings.width)
    return nn.Sequential(hidden, norm, nn.ReLU(), nn.Linear(settings.width, classes))
