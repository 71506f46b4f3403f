"""Credit: which losses reach which block's parameters, and what crosses its boundaries."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


class Credit(ABC):
    """How losses reach blocks; a subclass says which hops hold when, and what is special."""

    broadcast = False
    """Whether block K sends the gradient at its output to every block, and none is passed back."""

    @abstractmethod
    def at(self, step: int) -> Hop:
        """The hops that hold at `step`."""

    def hops(self) -> tuple[Hop, ...]:
        """All hops that hold at some step."""
        return (self.at(0),)

    def assessed(self, k: int, last: int) -> bool:
        """Whether block k's own loss reaches any block's parameters at some step."""
        return any(k in hop.sources(i, last) for hop in self.hops() for i in range(1, k + 1))

    def delay(self, k: int, last: int) -> int:
        """How many steps after its forward pass a shard's gradient reaches block k."""
        return 0

    def receptor(
        self, shape: tuple[int, ...], classes: int, target_shape: tuple[int, ...]
    ) -> nn.Module | None:
        """What turns an arriving message into the gradient at an output of `shape`, if anything."""
        return None


@dataclass(frozen=True)
class Hop(Credit):
    """Gradients that travel a fixed number of blocks backwards.

    `weights[n]` is the weight, in block k's update, of the loss of block k+n, or of block K when
    the network ends before it. `{0: 1}` is local learning, `{1: 1}` pairwise and `{N-1: 1}` N-wise
    interlocking (Gomez et al. 2022), `{0: 1, 1: 1}` overlapping blocks; `{inf: 1}` is backprop.

    `tail` cuts the way of later blocks' losses inside a block: they reach the parameters of its
    last `tail` units only (Guo et al. 2022, BackLink). Their gradients must not go further then.
    """

    weights: Mapping[float, float]
    tail: int | None = None

    def __post_init__(self) -> None:
        assert self.tail is None or all(n <= 1 for n, weight in self.weights.items() if weight)

    def at(self, step: int) -> Hop:
        return self

    def sources(self, k: int, last: int) -> dict[int, float]:
        """The losses (by block number) that reach block k's parameters, with their weights."""
        sources: dict[int, float] = {}
        for distance, weight in sorted(self.weights.items()):
            if weight:
                j = int(min(k + distance, last))
                sources.setdefault(j, weight)  # the loss of block K counts once
        return sources

    def passed_back(self, k: int, last: int) -> tuple[int, ...]:
        """The losses whose gradient block k sends to block k-1, in the order it sends them."""
        wanted = {j for i in range(1, k) for j in self.sources(i, last) if j >= k}
        return tuple(sorted(wanted))

    def reaching(self, k: int, last: int) -> tuple[int, ...]:
        """The losses whose gradient arrives at block k's output, its own among them, in order."""
        return tuple(sorted(set(self.sources(k, last)) | set(self.passed_back(k, last))))


LOCAL = Hop({0: 1.0})
END_TO_END = Hop({math.inf: 1.0})


@dataclass(frozen=True)
class Guided(Credit):
    """Local learning, but end to end in the first `guided` steps of every `period` (PGL)."""

    period: int
    guided: int

    def at(self, step: int) -> Hop:
        return END_TO_END if step % self.period < self.guided else LOCAL

    def hops(self) -> tuple[Hop, ...]:
        return (END_TO_END,) if self.guided >= self.period else (END_TO_END, LOCAL)


@dataclass(frozen=True)
class Delayed(Credit):
    """Backprop whose gradients reach block k (K-k) times `lag` steps after its forward pass.

    `stash` says what the block keeps until then: its `weights` with the activations (DDG), or only
    its `inputs`, run again through the weights of the day (features replay). `compensation` is the
    factor of a first-order correction for the weights' way since the forward pass.
    """

    lag: int = 1
    stash: str = "weights"
    compensation: float = 0.0

    def at(self, step: int) -> Hop:
        return END_TO_END

    def delay(self, k: int, last: int) -> int:
        return self.lag * (last - k)


@dataclass(frozen=True)
class Reconcile(Credit):
    """Local learning with a penalty on the distance between two gradients at each boundary.

    One is that of the block's loss at its input; the other, of the loss of the block before at its
    output, comes with the activation.

    `weight` rises linearly from 0 in the first `warmup`, a share of all steps, and then stays.
    """

    weight: float
    warmup: float
    scale_free: bool
    frozen_signal: bool

    def at(self, step: int) -> Hop:
        return LOCAL

    def weight_at(self, step: int, steps: int) -> float:
        """The weight of the penalty at `step` of `steps`."""
        rise = self.warmup * steps
        return self.weight * (min(1.0, step / rise) if rise else 1.0)
