"""Cut a chain of costs into contiguous blocks so that the largest block is as small as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from learning.errors import UserError

MOST_WORK = 2 * 10**7
"""The square of the units times the blocks: seconds of balancing."""


def partition(costs: Sequence[float], blocks: int) -> list[int]:
    """Partition `costs` into `blocks` contiguous runs with the smallest possible largest sum.

    The pipeline runs at the pace of its slowest block, so the largest sum is what counts. Among
    the partitions that reach it, the one with the smallest sum of squared block costs is taken
    (the most even one), then the one with the most even numbers of units, then the one whose last
    block is longest (and so on towards the front), so that equal costs always give equal sizes.

    Args:
        costs: n finite numbers >= 0, in the order of the network; any unit (seconds, bytes, ...).
        blocks: number of runs, 1 <= blocks <= n.

    Returns:
        The sizes of the runs, each >= 1; they sum to n. O(n^2 blocks) time.

    Raises:
        UserError: when `blocks` is out of range, a cost is negative or not finite, or this would
            take minutes.
    """
    n = len(costs)
    if blocks < 1:
        raise UserError(f"blocks.count = {blocks} is less than 1: use at least 1 block")
    if blocks > n:
        units = "1 unit" if n == 1 else f"{n} units"
        raise UserError(
            f"blocks.count = {blocks} is more than the {units} of this network: use at most {n}"
        )
    if n * n * blocks > MOST_WORK:
        raise UserError(
            f"blocks.count = {blocks} of {n} units takes too long to balance: name the units that "
            f"begin blocks in blocks.at, or use at most {MOST_WORK // (n * n)} blocks"
        )
    for i, cost in enumerate(costs, start=1):
        if not (math.isfinite(cost) and cost >= 0):
            raise UserError(
                f"the cost of unit {i} is {cost}: costs must be finite and not negative"
            )
    # Differences of one list of prefix sums: both passes see bit-identical block costs, so the
    # second pass may compare them with the optimum of the first exactly.
    prefix = [0, *accumulate(costs)]
    return _most_even(prefix, blocks, _smallest_maximum(prefix, blocks))


Measure = Callable[[tuple[int, ...]], Sequence[float] | None]
"""The costs of the blocks of a cut, given as the blocks' sizes; None where it cannot be had."""

WORTH_MOVING = 0.98
"""A measured cut must be this much better than the last: less may be the noise of a clock."""


def refine(sizes: Sequence[int], measure: Measure) -> list[int]:
    """Move cuts by one unit while the measured slowest block gets faster.

    What a block costs under a rule is no sum over its units: its auxiliary network depends on where
    the cut is. So whole cuts are measured, beginning with the one that units alone suggest. From
    the best so far, the slowest block (the first of several) gives a unit to a neighbour: first to
    the one that costs less, to the earlier one of equals. The first move that makes the slowest
    block faster by 2 % is taken and the search goes on from there; when none is, it ends. This
    finds a cut from which no single move of the slowest block's units helps, not always the best.

    Args:
        sizes: of the blocks of the first cut.
        measure: asked once for each cut. Returning None, as for a cut that cannot run or when
            time is up, passes the cut over.

    Returns:
        The sizes of the best cut measured; those of the first where it was not measured.
    """
    best = tuple(sizes)
    costs = measure(best)
    asked = {best}
    while costs is not None:
        limit = max(costs) * WORTH_MOVING
        for candidate in _moves(best, costs):
            if candidate in asked:
                continue
            asked.add(candidate)
            found = measure(candidate)
            if found is not None and max(found) < limit:
                best, costs = candidate, found
                break
        else:
            break
    return list(best)


def _moves(sizes: tuple[int, ...], costs: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """The cuts in which the slowest block has one unit less, the better neighbour first."""
    slowest = costs.index(max(costs))
    neighbours = [i for i in (slowest - 1, slowest + 1) if 0 <= i < len(sizes)]
    for neighbour in sorted(neighbours, key=lambda i: (costs[i], i)):
        if sizes[slowest] > 1:
            moved = list(sizes)
            moved[slowest] -= 1
            moved[neighbour] += 1
            yield tuple(moved)


def _smallest_maximum(prefix: Sequence[float], blocks: int) -> float:
    """Minimise the largest block cost; `prefix` has n + 1 entries."""
    n = len(prefix) - 1
    # best[j]: the smallest largest cost of the first j units in the blocks so far.
    best = [0.0, *[math.inf] * n]
    for block in range(1, blocks + 1):
        new = [math.inf] * (n + 1)
        for j in range(block, n + 1):
            new[j] = min(max(best[i], prefix[j] - prefix[i]) for i in range(block - 1, j))
        best = new
    return best[n]


def _most_even(prefix: Sequence[float], blocks: int, limit: float) -> list[int]:
    """Find the sizes of the most even partition whose blocks all cost at most `limit`.

    The secondary goals are sums over blocks, for which dynamic programming under a fixed limit is
    exact; minimising (largest, sum of squares) in a single pass would not be, because a prefix
    with a worse maximum may still be the better half of the whole.
    """
    n = len(prefix) - 1
    best: list[tuple[float, int] | None] = [(0.0, 0), *[None] * n]
    cuts: list[list[int]] = []
    for block in range(1, blocks + 1):
        new: list[tuple[float, int] | None] = [None] * (n + 1)
        start = [0] * (n + 1)
        for j in range(block, n + 1):
            for i in range(block - 1, j):
                before, cost = best[i], prefix[j] - prefix[i]
                if before is None or cost > limit:
                    continue
                score = (before[0] + cost * cost, before[1] + (j - i) ** 2)
                current = new[j]
                if current is None or score < current:
                    new[j], start[j] = score, i
        best = new
        cuts.append(start)
    sizes, end = [], n
    for start in reversed(cuts):
        sizes.append(end - start[end])
        end = start[end]
    return sizes[::-1]
