"""The actors of all lanes: started, wired to one another, and started again when lost.

Each time the chain is wired it is in another incarnation: all learners are built anew, and what an
actor of an earlier one still sends is refused.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from actors.executors import LANE
from actors.operations import Doing
from actors.shell import Change
from actors.shells import BatchSettings, actor_classes
from learning.build import Program
from learning.data import AugmentSettings, Dataset, DataSettings
from learning.errors import UserError
from learning.units import Unit
from orchestrator.borrowed import Borrowed, surrounding_group
from orchestrator.calls import Calls, doing, endings
from orchestrator.lane import Actor, Cast, Lane, cast
from orchestrator.losses import ActorLostError, Loss
from orchestrator.placement import check_fit, free_resources
from orchestrator.placement_groups import Placement
from orchestrator.plan import Plan
from orchestrator.program import channels
from orchestrator.settings import SourcePlace, Transport


class Chain:
    """Blocks, feedback modules and perhaps the sources of all lanes, in placement groups.

    Attributes:
        lanes: in the order in which they came; the first leads.
        spare: actors that left the chain and have not ended, with their placement groups.
        is_fixed: whether its room was given to it, as in a trial: it neither grows nor moves.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        blocks: Sequence[Sequence[Unit]],
        data: DataSettings | Dataset,
        augment: AugmentSettings,
        *,
        evaluation_batch: int,
        threads: int,
        window: int,
        transport: Transport = "object_store",
        source: SourcePlace = "block1",
        lanes: int = 1,
        grows: bool = False,
        patience: float = 300.0,
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        """Start all actors and wire them.

        Args:
            data: settings of data that are loaded where batches are made, or data in memory.
            fingerprint: of the data that are to be found there.
            threads: torch threads of each actor.
            window: steps that a block may run ahead of the next one.
            transport: how messages travel between actors.
            source: who makes the batches.
            lanes: how many at first.
            grows: whether actors may later be on other nodes than at first.
            patience: seconds for what an actor does not do at once.

        Raises:
            UserError: when the plan does not fit the cluster, or an actor cannot reach another.
        """
        self.program, self.plan = program, plan
        self.transport: Transport = transport
        self.patience, self._grows = patience, grows
        self._messages = window * program.settings.shards
        self._calls = Calls(patience)
        self.incarnation, self._secret = 0, b""
        # A thread for each message that may be held back; sockets hold none back.
        # Twice: who sends may be replaced while what it has sent still waits.
        classes = actor_classes(2 * self._messages if transport == "object_store" else 0)
        batches = BatchSettings(data, augment, evaluation_batch, fingerprint)
        self.cast: Cast = partial(cast, program, blocks, batches, classes, threads, source)
        self.lanes: list[Lane] = []
        self.spare: list[Lane] = []
        self.is_fixed = False
        try:
            for number, placement in enumerate(self._room(lanes), start=1):
                self.lanes.append(Lane(number, self.cast(number), placement))
                self.lanes[-1].start()
            for lane in self.lanes:  # while their processes start
                lane.placement.wait_counted()
            self.renew()
        except BaseException:
            self.close()
            raise

    def _room(self, lanes: int) -> Iterator[Placement]:
        """Room for each lane: in the group that this process is in, if it is in one."""
        group = surrounding_group()
        if group is not None:
            self.is_fixed = True
            yield from Borrowed.all_lanes(self.plan, group, lanes)
            return
        check_fit(self.plan, free_resources(), lanes)
        for _ in range(lanes):
            yield Placement.now(self.plan)

    @property
    def actors(self) -> list[Actor]:
        """Those of all lanes, lane by lane."""
        return [actor for lane in self.lanes for actor in lane.actors]

    @property
    def unfinished(self) -> dict[ray.ObjectRef[Any], Actor]:
        """Calls that were given up, with their actors."""
        return self._calls.unfinished

    def new_lane(self) -> Lane:
        """Another lane, not started; its room is asked for. It has the lowest number left."""
        taken = {lane.number for lane in [*self.lanes, *self.spare]}
        number = next(n for n in itertools.count(1) if n not in taken)
        return Lane(number, self.cast(number), Placement(self.plan))

    def successors(self, lane: Lane, blocks: Sequence[int], node: str | None = None) -> Lane:
        """Successors of all actors in the bundles of some of a lane's blocks, not started.

        Args:
            node: address of the node where they are wanted; None: wherever there is room.
        """
        actors = [actor for actor in self.cast(lane.number) if actor.block in blocks]
        return Lane(lane.number, actors, Placement(self.plan, blocks, node))

    def renew(self, keep: bool = False) -> None:
        """Start the actors that are missing, build all learners anew and wire them.

        Args:
            keep: what those that are not missing have learnt.

        Raises:
            UserError: when an actor cannot reach another, or a learner cannot be built.
            ActorLostError: when an actor is lost meanwhile.
        """
        self.incarnation += 1
        self._secret = secrets.token_bytes(32)
        for lane in self.lanes:
            lane.start()
        self.call(lambda a: self.build(a, keep and a.identity is not None))
        known = self.call(lambda a: a.handle.identify.remote())
        for actor, identity in zip(self.actors, known, strict=True):
            actor.identity = identity
        if self.transport == "direct":
            for actor, endpoint in zip(self.actors, self.call(self.listen), strict=True):
                actor.endpoint = endpoint
        lane_of = {actor: lane for lane in self.lanes for actor in lane.actors}

        def connect(actor: Actor) -> ray.ObjectRef[Any]:
            return actor.handle.connect.remote(self.connections(actor, lane_of[actor]))

        try:
            self.call(connect)
        except UserError as error:
            # Not the network's fault if one of them has died meanwhile: that is said first.
            self.call(lambda a: a.handle.identify.remote())
            if self.incarnation > 1:  # it was right before
                raise ActorLostError(str(error)) from error
            raise

    def build(self, actor: Actor, keep: bool = False) -> ray.ObjectRef[Any]:
        """Let an actor become a part of this incarnation.

        Args:
            keep: what it has learnt in the last one.
        """
        return actor.handle.build.remote(self.incarnation, keep, *actor.arguments)

    def listen(self, actor: Actor) -> ray.ObjectRef[Any]:
        """Let an actor take direct messages."""
        nodes = {a.identity.node for a in self.actors if a.identity is not None}
        between_nodes = self._grows or len(nodes) > 1
        return actor.handle.listen.remote(actor.name, self._secret, between_nodes)

    def connections(self, actor: Actor, lane: Lane) -> Change:
        """All that an actor sends to: learners of its lane, and its twins in the others."""
        windows = channels(self.program, actor.learner, self._messages)
        added = {name: (lane.peer(name), window) for name, window in windows.items()}
        if actor.learns:
            for other in self.lanes:
                if other is not lane:
                    added[f"{LANE}{other.number}"] = (other.peer(actor.learner), None)
        return Change(added)

    def call(
        self, submit: Callable[[Actor], ray.ObjectRef[Any]], of: Sequence[Actor] | None = None
    ) -> list[Any]:
        """The results of a call to each of the actors, by default all, at the same time.

        Raises:
            ActorLostError: when an actor is lost, or does not end its call within the patience.
        """
        return self._calls.all(submit, self.actors if of is None else of)

    def stop(self) -> None:
        """Let the actors end their chunks and report what they did; nobody waits for it here."""
        for actor in self._all_there():
            actor.handle.stop.options(num_returns=0).remote(self.incarnation)

    def abandon(self) -> None:
        """Let the actors drop what they are at, wherever they wait; nobody waits for it here."""
        for actor in self.there():
            actor.handle.abandon.options(num_returns=0).remote(self.incarnation)

    def there(self) -> list[Actor]:
        """The actors that are not lost."""
        return [actor for actor in self.actors if actor.handle is not None]

    def _all_there(self) -> list[Actor]:
        leaving = (actor for lane in self.spare for actor in lane.actors)
        return [*self.there(), *(actor for actor in leaving if actor.handle is not None)]

    def doing(self) -> dict[str, Doing | None]:
        """What each actor does; None of those who do not answer, or are lost."""
        return doing(self._all_there())

    def lost(self) -> list[Loss]:
        """Find out who is lost, and end those who do not answer.

        Raises:
            ActorLostError: when Ray does not decide within the patience whether one is lost.
        """
        return endings(self._all_there(), "", self.patience)

    def end(self, actors: Iterable[Actor], why: str) -> list[Loss]:
        """End actors that do not go on.

        Args:
            why: what they did, after their name.
        """
        return endings(actors, why, self.patience)

    def shrink(self, least: int) -> None:
        """Give up lanes that have lost an actor, as long as `least` are left."""
        for lane in [lane for lane in self.lanes if not lane.is_whole]:
            if len(self.lanes) > least:
                self.give_up(lane)
        self.clear_spare()

    def give_up(self, lane: Lane) -> None:
        """Take a lane out of the chain."""
        self.lanes.remove(lane)
        self.discard(lane)

    def clear_spare(self) -> None:
        """End the actors that left the chain, and give their resources back."""
        while self.spare:
            self.discard(self.spare.pop())

    @staticmethod
    def discard(lane: Lane) -> None:
        """End actors that are no part of the chain, and give their resources back."""
        for actor in lane.actors:
            if actor.handle is not None:
                ray.kill(actor.handle)
                actor.handle = None
        lane.placement.release()

    def make_room(self) -> None:
        """Wait until there is room again for every actor that is missing.

        Raises:
            NoRoomError: when there is none in time.
        """
        deadline = time.monotonic() + self.patience
        for lane in self.lanes:
            lane.wait_for_room(self.patience, deadline)

    def close(self) -> None:
        """End the actors and give their resources back."""
        left, self.spare = self.spare, []
        for lane in [*self.lanes, *left]:
            self.discard(lane)
        for lane in [*self.lanes, *left]:
            lane.placement.wait_given_back()
