"""Actors on their way into a chain: reserved, started and built while the stream goes on."""

from __future__ import annotations

import time
from typing import Any

import ray

from orchestrator.calls import result
from orchestrator.chain import Chain
from orchestrator.lane import Lane
from orchestrator.losses import ActorLostError


class Arrival:
    """A lane, or the successors of some of a lane's actors, until they can be connected.

    Attributes:
        lane: its number, the new actors, and where they are.
    """

    def __init__(self, chain: Chain, lane: Lane) -> None:
        self.lane, self._chain = lane, chain
        self._incarnation = chain.incarnation
        self._calls: list[list[ray.ObjectRef[Any]]] = []  # by actor
        self._deadline = 0.0

    @property
    def waits(self) -> bool:
        """Whether it waits for room in the cluster."""
        return not self._calls

    def is_ready(self) -> bool:
        """Whether all can be connected; starts them as soon as there is room. Never waits.

        Raises:
            ActorLostError: when one is lost, or not built in time.
        """
        assert self._incarnation == self._chain.incarnation, "an arrival of an earlier incarnation"
        lane, chain = self.lane, self._chain
        if not self._calls:
            if all(lane.placement.is_there(block) for block in lane.placement.blocks):
                self._start()
            return False
        calls = [call for of_one in self._calls for call in of_one]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        for actor, (built, identity, *listening) in zip(lane.actors, self._calls, strict=True):
            if built in done:
                result(actor, built)  # raises what has gone wrong
            if len(done) == len(calls):
                actor.identity = result(actor, identity)
                actor.endpoint = result(actor, listening[0]) if listening else None
        if len(done) < len(calls) and time.monotonic() > self._deadline:
            names = ", ".join(actor.name for actor in lane.actors)
            raise ActorLostError(f"{names} were not built within {chain.patience:g} s")
        return len(done) == len(calls)

    def _start(self) -> None:
        chain = self._chain
        self._deadline = time.monotonic() + chain.patience
        for actor in self.lane.actors:
            actor.start(self.lane.placement)
            calls = [chain.build(actor), actor.handle.identify.remote()]
            self._calls.append(calls + [chain.listen(actor)] * (chain.transport == "direct"))

    def cancel(self) -> None:
        """End what was started, and give its resources back."""
        self._chain.discard(self.lane)
