"""Rebalancing: a block whose node has become slow goes on elsewhere.

The plan says which share of a step's time each block should take. A block that takes clearly more
of it than that, and longer than all others, holds everyone back: its node is busy with other work,
or slower than the one that was profiled.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import ray

from actors.operations import Kind, Span
from orchestrator.lane import Lane
from orchestrator.plan import Plan

LEAST_SECONDS = 20.0  # of spans, before anything is concluded from them
LEAST_STEPS = 20
COUNTED = {Kind.BATCH, Kind.FORWARD, Kind.ASSESS, Kind.GRADIENT, Kind.UPDATE}


@dataclass(frozen=True)
class Slow:
    """A block that takes more of a step than it should.

    Attributes:
        drift: its share of the time of all blocks, over that of the plan, minus one.
    """

    block: int
    drift: float


class Rebalancer:
    """Watches how long the blocks of one lane work.

    Args:
        drift: how much more than its share a block may take, as a share of it.
    """

    def __init__(self, plan: Plan, drift: float) -> None:
        self._shares = {block.index: block.time_share for block in plan.blocks}
        self._drift = drift
        self._tried: set[int] = set()  # moving again would help no more
        self.forget()

    def forget(self) -> None:
        """Begin to measure anew, after something has changed."""
        self._work: dict[int, float] = defaultdict(float)
        self._steps: dict[int, set[int]] = defaultdict(set)
        self._since = time.monotonic()

    def note(self, block: int, spans: Sequence[Span]) -> None:
        """Take note of what a block did."""
        for span in spans:
            if span.kind not in COUNTED:
                continue
            self._work[block] += (span.ended - span.started - span.waited - span.blocked) / 1e9
            self._steps[block].add(span.step)

    def slow(self) -> Slow | None:
        """The slowest block, if it takes too much of a step and was not moved because of it yet."""
        if time.monotonic() - self._since < LEAST_SECONDS or len(self._steps) < len(self._shares):
            return None
        if min(map(len, self._steps.values())) < LEAST_STEPS:
            return None
        each = {block: self._work[block] / len(self._steps[block]) for block in self._shares}
        block = max(each, key=each.__getitem__)
        share, total = self._shares[block], sum(each.values())
        self.forget()
        if not share or not total or block in self._tried:
            return None
        drift = each[block] / total / share - 1
        return Slow(block, drift) if drift > self._drift else None

    def moved(self, blocks: Collection[int]) -> None:
        """Blocks have moved because of what was said here."""
        self._tried |= set(blocks)
        self.forget()


def emptiest_node(
    lanes: Sequence[Lane], block: int, needs: Mapping[str, float], avoid: Collection[str]
) -> str | None:
    """The address of the node with the fewest blocks, of those where this block is not.

    Args:
        needs: what a node must have by name of the resource, taken or not.
        avoid: ids of nodes that will soon be gone.
    """
    taken: dict[str, int] = defaultdict(int)
    here = set(avoid)
    for actor in (actor for lane in lanes for actor in lane.actors if actor.identity):
        assert actor.identity is not None
        taken[actor.identity.node] += actor.is_block
        if actor.block == block:
            here.add(actor.identity.node)
    others = [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] not in here
        and all(node["Resources"].get(name, 0) >= amount for name, amount in needs.items())
    ]
    if not others:
        return None
    return min(others, key=lambda node: taken[node["NodeID"]])["NodeManagerAddress"]
