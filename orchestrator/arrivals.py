"""Actors on their way into a chain: reserved, started and built while the stream goes on."""

from __future__ import annotations

import time
from typing import Any

import ray

from actors.sockets import Endpoint
from orchestrator.calls import result
from orchestrator.chain import Chain
from orchestrator.lane import Actor, Lane
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
        self._reaching: dict[ray.ObjectRef[Any], Actor] | None = None
        self._deadline = 0.0

    @property
    def waits(self) -> bool:
        """Whether it waits for room in the cluster."""
        return not self._calls

    def is_ready(self) -> bool:
        """Whether all can be connected; starts them as soon as there is room. Never waits.

        Raises:
            ActorLostError: when one is lost, or not ready in time.
            UserError: when one cannot be built, or not be reached from where others are.
        """
        assert self._incarnation == self._chain.incarnation, "an arrival of an earlier incarnation"
        lane, chain = self.lane, self._chain
        if not self._calls:
            if all(lane.placement.is_there(block) for block in lane.placement.blocks):
                self._start()
            return False
        if self._are_built():
            if self._reaching is None:
                self._reaching = self._reach() if chain.transport == "direct" else {}
            if self._are_reached(self._reaching):
                return True
        if time.monotonic() > self._deadline:
            names = ", ".join(actor.name for actor in lane.actors)
            raise ActorLostError(f"{names} were not ready within {chain.patience:g} s")
        return False

    def _start(self) -> None:
        chain = self._chain
        self._deadline = time.monotonic() + chain.patience
        for actor in self.lane.actors:
            actor.start(self.lane.placement)
            calls = [chain.build(actor), actor.handle.identify.remote()]
            if chain.transport == "direct":
                calls.append(chain.listen(actor))
            self._calls.append(calls)

    def _are_built(self) -> bool:
        """Whether all are built and known; raises what has gone wrong."""
        calls = [call for of_one in self._calls for call in of_one]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        for actor, (built, identity, *listening) in zip(self.lane.actors, self._calls, strict=True):
            if built in done:
                result(actor, built)
            if len(done) == len(calls):
                actor.identity = result(actor, identity)
                actor.endpoint = result(actor, listening[0]) if listening else None
        return len(done) == len(calls)

    def _reach(self) -> dict[ray.ObjectRef[Any], Actor]:
        """Let one actor of each node find out whether it reaches the new ones, and they it.

        Once they are connected, who is out of reach costs an incident.
        """
        here = _one_a_node(self._chain.actors)
        there = _one_a_node(self.lane.actors)
        wanted: dict[Actor, list[Endpoint | None]] = {
            actor: [new.endpoint for new in self.lane.actors] for actor in here.values()
        }
        for actor in there.values():
            wanted[actor] = [
                a.endpoint for a in [*here.values(), *there.values()] if a is not actor
            ]
        return {actor.handle.reach.remote(peers): actor for actor, peers in wanted.items()}

    def _are_reached(self, reaching: dict[ray.ObjectRef[Any], Actor]) -> bool:
        """Whether everyone has reached everyone; raises what has gone wrong."""
        calls = list(reaching)
        done = ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        for call in done:
            result(reaching[call], call)
        return len(done) == len(calls)

    def cancel(self) -> None:
        """End what was started, and give its resources back."""
        self._chain.discard(self.lane)


def _one_a_node(actors: list[Actor]) -> dict[str, Actor]:
    found: dict[str, Actor] = {}
    for actor in actors:
        if actor.identity is not None and actor.handle is not None:
            found.setdefault(actor.identity.node, actor)
    return found
