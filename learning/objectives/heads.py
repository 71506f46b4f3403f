"""Auxiliary networks: small classifiers that give a block a loss of its own."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Depth, Flag, Pixels, Width
from learning.errors import UserError
from learning.networks.attention import Rotary, TransformerBlock, initialise
from learning.settings import Settings


class HeadSettings(Settings):
    """An auxiliary classifier.

    `linear`: average pooling to `grid` x `grid` and a linear layer. `conv`: pooling to at most
    `pool` x `pool` and `depth` times 3x3 convolution, batch norm, ReLU (stride 2 first) before it.
    On vectors `conv` is a hidden layer of `width` with batch norm instead. `transformer`: `depth`
    transformer blocks before the linear layer, on tokens.
    """

    kind: Literal["linear", "conv", "transformer"] = "linear"
    width: Width = 128
    depth: Depth = 1
    heads: Depth = Field(default=4, description="of attention; divides the features of a token")
    causal: Flag = Field(default=True, description="no token sees the ones after it")
    pool: Pixels = Field(default=16, ge=2)
    grid: Pixels = Field(
        default=1, description="images are pooled to grid x grid before the linear layer"
    )


class PooledLinear(nn.Module):
    """Pooling to a grid and a linear layer: (B, C, H, W) or (B, D) to scores (B, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int, grid: int | tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        self.grid = (min(rows, shape[1]), min(columns, shape[2])) if len(shape) == 3 else None
        cells = math.prod(self.grid) if self.grid else 1
        self.linear = nn.Linear(shape[0] * cells, classes)

    def forward(self, h: Tensor) -> Tensor:
        if self.grid is not None:
            h = F.adaptive_avg_pool2d(h, self.grid).flatten(1)
        return self.linear(h)


class TokenLinear(nn.Module):
    """RMS norm and a linear layer: (B, T, D) to scores (B, T, classes), or (B, classes) pooled."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, per_token: bool) -> None:
        super().__init__()
        self.per_token = per_token
        self.norm = nn.RMSNorm(shape[-1])
        self.linear = nn.Linear(shape[-1], classes)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm(h)
        return self.linear(h if self.per_token else h.mean(1))


def transformer_features(
    shape: tuple[int, ...], depth: int, heads: int, *, causal: Flag
) -> nn.Sequential:
    """`depth` pre-norm transformer blocks without biases: (B, T, D) to (B, T, D).

    As those of `network.kind = gpt`, with four widths of hidden features and rotary positions
    (without any where the size of a head is odd).

    Raises:
        UserError: for activations that are not tokens, or that the heads cannot share.
    """
    if len(shape) != 2:
        raise UserError(
            f"transformer blocks of a head read tokens (tokens, features), not {shape}: use "
            "rule.head.kind = linear"
        )
    context, size = shape
    if size % heads:
        raise UserError(
            f"{heads} attention heads of an auxiliary network do not divide the {size} features "
            "of a token: set the rule's number of heads to a divisor"
        )
    blocks = nn.Sequential()
    for _ in range(depth):
        block = TransformerBlock(
            size,
            heads,
            hidden=4 * size,
            norm=nn.RMSNorm,
            bias=False,
            causal=causal,
            rotary=None if (size // heads) % 2 else Rotary(context, size // heads),
        )
        blocks.append(block)
    initialise(blocks, max(1, depth))
    return blocks


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


def make_head(
    settings: HeadSettings,
    shape: tuple[int, ...],
    classes: int,
    target_shape: tuple[int, ...] = (),
) -> nn.Module:
    """Build the head for activations of `shape` and labels of `target_shape` (without batch)."""
    if target_shape and len(shape) != 2:
        raise UserError(
            f"with one label a token a head reads tokens (tokens, features), not {shape}: cut the "
            "network at another unit"
        )
    if settings.kind == "linear" and len(shape) == 2:
        return TokenLinear(shape, classes, per_token=bool(target_shape))
    if settings.kind == "transformer":
        features = transformer_features(
            shape, settings.depth, settings.heads, causal=settings.causal
        )
        linear = TokenLinear(shape, classes, per_token=bool(target_shape))
        return nn.Sequential(OrderedDict(features=features, linear=linear))
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
