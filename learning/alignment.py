"""Feedback alignment at block boundaries: fixed maps instead of the true way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from learning.credit import END_TO_END, Credit, Hop

MapKind = Literal["identity", "random", "sign-symmetric"]


@dataclass(frozen=True)
class BoundaryAlignment(Credit):
    """Backprop whose gradients go through a fixed map B at every boundary, G' = B G."""

    kind: MapKind

    def at(self, step: int) -> Hop:
        return END_TO_END

    def receptor(
        self, shape: tuple[int, ...], classes: int, target_shape: tuple[int, ...]
    ) -> nn.Module | None:
        return None if self.kind == "identity" else BoundaryMap(shape, self.kind)


@dataclass(frozen=True)
class Broadcast(Credit):
    """The error at the network's output reaches every block at once, through a fixed map (DFA)."""

    broadcast = True

    def at(self, step: int) -> Hop:
        return END_TO_END

    def receptor(
        self, shape: tuple[int, ...], classes: int, target_shape: tuple[int, ...]
    ) -> nn.Module | None:
        return ErrorMap(shape, classes, per_token=bool(target_shape))


def channel_dim(shape: tuple[int, ...]) -> int:
    """Where the features of (b, *shape) lie: images (b, C, H, W) have them first, others last."""
    return 1 if len(shape) == 3 else len(shape)


class BoundaryMap(nn.Module):
    """B, over the features of a boundary: (b, ..., D, ...) to the same shape.

    `random`: entries of variance 1/D, so that norms are kept on average. `sign-symmetric`: the
    way forward over a boundary is the identity, so what keeps its signs is a positive diagonal;
    magnitudes of standard normals, scaled to keep norms on average.
    """

    weight: Tensor

    def __init__(self, shape: tuple[int, ...], kind: MapKind) -> None:
        super().__init__()
        self.dim = channel_dim(shape)
        size = shape[self.dim - 1]
        if kind == "random":
            weight = torch.randn(size, size) / math.sqrt(size)
        else:
            weight = torch.diag(torch.randn(size).abs())
        self.register_buffer("weight", weight)

    def forward(self, gradient: Tensor) -> Tensor:
        """Apply B to each position."""
        mapped = gradient.movedim(self.dim, -1) @ self.weight.T.to(gradient.dtype)
        return mapped.movedim(-1, self.dim)


class ErrorMap(nn.Module):
    """B_k: the error (b, C), or (b, T, C) for tokens, to a gradient at a block's output (b, ...).

    Entries have variance 1/C. One error for many positions is the same at each, divided by
    their number, as the gradient of a mean over positions is.
    """

    weight: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, *, per_token: bool) -> None:
        super().__init__()
        self.shape, self.dim, self.per_token = shape, channel_dim(shape), per_token
        size = shape[self.dim - 1]
        self.register_buffer("weight", torch.randn(classes, size) / math.sqrt(classes))

    def forward(self, error: Tensor) -> Tensor:
        """Project the error and spread it over positions."""
        projected = error.to(self.weight.dtype) @ self.weight
        if self.per_token or len(self.shape) == 1:
            return projected
        return spread(projected, self.shape)


def spread(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, D) to (b, *shape): the same at every position, divided by the number of positions."""
    dim = channel_dim(shape)
    positions = math.prod(shape) // shape[dim - 1]
    view = [len(features), *(1 for _ in shape)]
    view[dim] = shape[dim - 1]
    return (features / positions).view(view).expand(len(features), *shape)
