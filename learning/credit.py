"""Credit: which losses reach which block's parameters, and what crosses its boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Hop:
    """Gradients that travel a fixed number of blocks backwards.

    `weights[n]` is the weight, in block k's update, of the loss of block k+n, or of block K when
    the network ends before it. `{0: 1}` is local learning, `{1: 1}` pairwise and `{N-1: 1}` N-wise
    interlocking (Gomez et al. 2022), `{0: 1, 1: 1}` overlapping blocks; `{inf: 1}` is backprop.
    """

    weights: Mapping[float, float]

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

    def assessed(self, k: int, last: int) -> bool:
        """Whether block k's own loss reaches any block's parameters."""
        return any(k in self.sources(i, last) for i in range(1, k + 1))


LOCAL = Hop({0: 1.0})
END_TO_END = Hop({math.inf: 1.0})
