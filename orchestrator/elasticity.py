"""Elasticity: lanes that come when there is room and go when a node drains; blocks that move.

Nothing here waits: `look` starts things and sees how far they are, and `turn` tells the stream what
can happen at the step boundary that it is at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.exceptions import RayError

from actors.operations import Span
from learning.errors import UserError
from orchestrator.arrivals import Arrival
from orchestrator.chain import Chain
from orchestrator.lane import Actor, Lane
from orchestrator.lane_settings import LaneSettings
from orchestrator.losses import ActorLostError
from orchestrator.rebalancing import Rebalancer, emptiest_node
from orchestrator.turns import Turn, join, leave, move

LOOK_SECONDS = 0.5
RETRY_SECONDS = 30.0  # after actors that were to come have failed
ROOM_SECONDS = 10.0  # for room on a node that a block need not move to

Drains = Callable[[], Mapping[str, str]]
"""Nodes that will soon be gone, by id, and why."""

_log = logging.getLogger(__name__)


@dataclass
class _Move:
    """Some of a lane's blocks on their way to another place.

    Attributes:
        until: when it is given up if there is no room by then, in monotonic seconds.
    """

    lane: Lane
    why: str
    until: float
    arrival: Arrival

    @property
    def is_optional(self) -> bool:
        """Whether nothing is lost without it."""
        return self.until < float("inf")

    def must_end(self, now: float, draining: bool) -> bool:
        """Whether to give it up: there is no room in time, or a node drains, which comes first."""
        return self.is_optional and (draining or (self.arrival.waits and now > self.until))


class Elasticity:
    """Decides who comes, goes and moves.

    Attributes:
        noticed: nodes of the chain whose end was announced, and why.
    """

    def __init__(
        self,
        chain: Chain,
        settings: LaneSettings,
        drains: Drains,
        rebalancer: Rebalancer | None = None,
    ) -> None:
        self.settings, self._chain, self._drains = settings, chain, drains
        self._rebalancer = rebalancer
        self._growth: Arrival | None = None
        self._move: _Move | None = None
        self.noticed: dict[str, str] = {}
        self._looked = float("-inf")
        self._no_growth_until = self._no_move_until = float("-inf")
        self._alarm = False
        self._draining: Mapping[str, str] = {}

    def look(self) -> None:
        """See what has changed in the cluster."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._draining = draining = self._drains()
        here = {a.identity.node for a in self._chain.actors if a.identity is not None}
        new = [node for node in draining if node in here and node not in self.noticed]
        self.noticed = {node: draining[node] for node in draining if node in here}
        self._alarm = self._alarm or bool(new)
        if self._growth is not None and not self._growth.waits and new:
            self._cancel_growth()  # it may be on that node
        if self._move is not None and self._move.must_end(now, bool(self.noticed)):
            self._give_up_move()
        if self._chain.is_fixed:
            return
        if self._move is None and now >= self._no_move_until:
            self._move_from_drains()
            self._move_from_slow_nodes()
        if self._growth is None and now >= self._no_growth_until and self._may_grow():
            self._growth = Arrival(self._chain, self._chain.new_lane())

    def alarmed(self) -> bool:
        """Whether the end of a node was announced since this was asked last."""
        alarm, self._alarm = self._alarm, False
        return alarm

    def _may_grow(self) -> bool:
        return len(self._chain.lanes) < self.settings.max and self._move is None

    def _touched(self) -> tuple[Lane, list[int], str] | None:
        """A lane with blocks on a node that will soon be gone."""
        for lane in self._chain.lanes:
            nodes = {a.block: a.identity.node for a in lane.actors if a.identity is not None}
            blocks = [block for block, node in nodes.items() if node in self.noticed]
            if blocks:
                return lane, blocks, self.noticed[nodes[blocks[0]]]
        return None

    def _move_from_drains(self) -> None:
        touched = self._touched()
        if touched is not None and len(self._chain.lanes) <= self.settings.min:
            self.ask_to_move(*touched)

    def _move_from_slow_nodes(self) -> None:
        slow = self._rebalancer.slow() if self._rebalancer and self._move is None else None
        if slow is None:
            return
        plan = self._chain.plan.blocks[slow.block - 1]
        needs = {"CPU": plan.cpus, "GPU": plan.gpus}
        node = emptiest_node(self._chain.lanes, slow.block, needs, self._draining)
        if node is not None:
            why = f"because it took {slow.drift:.0%} more of a step than planned"
            self.ask_to_move(self._chain.lanes[0], [slow.block], why, node)

    def note(self, actor: Actor, spans: Sequence[Span]) -> None:
        """Take note of what an actor did."""
        if self._rebalancer and actor.lane == self._chain.lanes[0].number and actor.is_block:
            self._rebalancer.note(actor.block, spans)

    def ask_to_move(self, lane: Lane, blocks: list[int], why: str, node: str | None = None) -> None:
        """Have blocks of a lane go on elsewhere, as soon as there is room.

        Args:
            node: address of the node where; None: wherever Ray finds room.
        """
        assert self._move is None, "one move at a time"
        self._cancel_growth()  # a lane that waits for room would take it
        there = self._chain.successors(lane, blocks, node)
        until = time.monotonic() + ROOM_SECONDS if node else float("inf")
        self._move = _Move(lane, why, until, Arrival(self._chain, there))

    def turn(self, step: int) -> Turn | None:
        """What can happen before `step`, which is not handed out yet; None: nothing."""
        touched = self._touched()
        if touched is not None and len(self._chain.lanes) > self.settings.min:
            lane, _, why = touched
            if self._move is not None and self._move.lane is lane:
                self.cancel()
            return leave(self._chain, lane, step, why)
        try:
            if self._move is not None and self._move.arrival.is_ready():
                there, self._move = self._move, None
                if self._rebalancer and there.is_optional:
                    self._rebalancer.moved([a.block for a in there.arrival.lane.actors])
                return move(self._chain, there.lane, there.arrival.lane, step, there.why)
            if self._growth is not None and self._growth.is_ready():
                growth, self._growth = self._growth, None
                return join(self._chain, growth.lane, step)
        except (ActorLostError, UserError, RayError) as error:
            # Also what their own code raises: the run does well without them.
            _log.warning("actors that were to come are given up for now: %s", error)
            again = time.monotonic() + RETRY_SECONDS
            if self._move is not None:
                self._no_move_until = again
                self._give_up_move()
            else:
                self._no_growth_until = again
                self._cancel_growth()
        return None

    def give_up_newest(self, why: str) -> None:
        """Give up the lane that came last, and grow no more.

        Args:
            why: the chain could not be wired.
        """
        lanes = self._chain.lanes
        if len(lanes) > self.settings.min:
            _log.warning("lane %d is given up for good: %s", lanes[-1].number, why)
            self._no_growth_until = float("inf")
            self._chain.give_up(lanes[-1])

    def _cancel_growth(self) -> None:
        if self._growth is not None:
            self._growth.cancel()
            self._growth = None

    def cancel(self) -> None:
        """Give up who was to come, and what was asked for them."""
        self._cancel_growth()
        self._give_up_move()

    def close(self) -> None:
        """Leave who was to come to the chain, which is about to close."""
        for arrival in (self._growth, self._move.arrival if self._move else None):
            if arrival is not None:
                self._chain.spare.append(arrival.lane)
        self._growth = self._move = None

    def _give_up_move(self) -> None:
        if self._move is not None:
            self._move.arrival.cancel()
            self._move = None
