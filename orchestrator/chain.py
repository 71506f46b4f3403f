"""The actors of a chain of blocks: started, wired to one another, and started again when lost.

Each time the chain is wired it is in another incarnation: all learners are built anew, and what an
actor of an earlier one still sends is refused.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from torch import Tensor

from actors.operations import Doing
from actors.shells import BatchSettings, Identity, actor_classes
from learning.build import Program
from learning.data import AugmentSettings, Dataset, DataSettings
from learning.errors import UserError
from learning.messages import block_name, feedback_name
from learning.units import Unit
from orchestrator.dependencies import SOURCE
from orchestrator.losses import ActorLostError, Loss, NoRoomError, describe, is_definite, to_raise
from orchestrator.placement import Placement
from orchestrator.plan import Plan
from orchestrator.program import channels

Transport = Literal["object_store", "direct"]
SourcePlace = Literal["block1", "actor"]
"""Who makes the batches: block 1, or an actor of its own."""

ANSWER_SECONDS = 5.0  # an actor answers within milliseconds, whatever it computes
AGAIN_SECONDS = 0.1


@dataclass
class Actor:
    """One process of the chain.

    Attributes:
        kind: its class, as Ray knows it.
        block: in whose bundle it is, of which it takes `share`.
        arguments: what its learners are built from.
        handle: None while it is lost.
    """

    name: str
    kind: Any
    block: int
    share: float
    arguments: tuple[Any, ...]
    handle: Any = None
    identity: Identity | None = None


class Chain:
    """Blocks, feedback modules and perhaps the source, in placement groups.

    Attributes:
        unfinished: calls that `call` gave up to wait for, with their actors.
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
        transport: Transport,
        source: SourcePlace,
        patience: float,
    ) -> None:
        """Start all actors and wire them: see `RayEngine`.

        Args:
            patience: seconds for what an actor does not do at once.
        """
        self._patience = patience
        self.unfinished: dict[ray.ObjectRef[Any], Actor] = {}
        self.program, self._transport = program, transport
        self._messages = window * program.settings.shards
        self.incarnation = 0
        batches = BatchSettings(data, augment, evaluation_batch)
        self.actors = self._described(blocks, batches, threads, source)
        self._placement = Placement(plan)
        try:
            self.renew()
        except BaseException:
            self.close()
            raise

    def _described(
        self,
        blocks: Sequence[Sequence[Unit]],
        batches: BatchSettings,
        threads: int,
        source: SourcePlace,
    ) -> list[Actor]:
        program = self.program
        # A thread for each message that may be held back; sockets hold none back.
        classes = actor_classes(self._messages if self._transport == "object_store" else 0)
        # A bundle holds a block, and in half of it its feedback module where there is one.
        share = 0.5 if program.feedback_modules else 1.0
        actors: list[Actor] = []
        if source == "actor":
            actors.append(Actor(SOURCE, classes.source, 1, 0.0, (program, batches, 1)))
        for k, units in enumerate(blocks, start=1):
            later = blocks[k:] if program.rule.looks_ahead else ()
            own = batches if k == 1 and source == "block1" else None
            arguments = (program, k, units, later, threads, own)
            actors.append(Actor(block_name(k), classes.block, k, share, arguments))
        for k in range(1, program.feedback_modules + 1):
            arguments = (program, k, threads)
            actors.append(Actor(feedback_name(k), classes.feedback, k, share, arguments))
        return actors

    def renew(self) -> None:
        """Start the actors that are missing, build all learners anew and wire them.

        Raises:
            UserError: when an actor cannot reach another, or a learner cannot be built.
            ActorLostError: when an actor is lost meanwhile.
        """
        self.incarnation += 1
        for actor in self.actors:
            if actor.handle is None:
                options = self._placement.options(actor.block, share=actor.share)
                # Ray must never re-run a training step on a reset actor.
                settings = {"max_restarts": 0, "max_task_retries": 0, **options}
                actor.handle, actor.identity = actor.kind.options(**settings).remote(), None
        self.call(lambda a: a.handle.build.remote(self.incarnation, *a.arguments))
        known = self.call(lambda a: a.handle.identify.remote())
        for actor, identity in zip(self.actors, known, strict=True):
            actor.identity = identity
        peers = {actor.name: actor.handle for actor in self.actors}
        if self._transport == "direct":
            secret = secrets.token_bytes(32)
            between_nodes = len({identity.node for identity in known}) > 1
            listening = self.call(lambda a: a.handle.listen.remote(a.name, secret, between_nodes))
            peers = {endpoint.name: endpoint for endpoint in listening}

        def connect(actor: Actor) -> ray.ObjectRef[Any]:
            windows = channels(self.program, actor.name, self._messages)
            connected = {name: (peers[name], window) for name, window in windows.items()}
            return actor.handle.connect.remote(connected)

        try:
            self.call(connect)
        except UserError as error:
            # Not the network's fault if one of them has died meanwhile: that is said first.
            self.call(lambda a: a.handle.identify.remote())
            if self.incarnation > 1:  # it was right before
                raise ActorLostError(str(error)) from error
            raise

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        """Load a snapshot into all learners; training goes on at `step`."""
        learners = [actor for actor in self.actors if actor.name in state]
        # All mailboxes first: a learner that is loaded sends what was under way.
        self.call(lambda a: a.handle.clear.remote(), learners)
        self.call(lambda a: a.handle.load.remote(state[a.name], step), learners)

    def call(
        self, submit: Callable[[Actor], ray.ObjectRef[Any]], of: Sequence[Actor] | None = None
    ) -> list[Any]:
        """The results of a call to each of the actors, by default all, at the same time.

        Raises:
            ActorLostError: when an actor is lost, or does not end its call within the patience.
        """
        calls = {submit(actor): actor for actor in (self.actors if of is None else of)}
        results: dict[ray.ObjectRef[Any], Any] = {}
        self.unfinished = dict(calls)
        deadline = time.monotonic() + self._patience
        while self.unfinished:
            done, _ = ray.wait(list(self.unfinished), timeout=ANSWER_SECONDS)
            for call in done:
                results[call] = self.result(self.unfinished.pop(call), call)
            if not done:
                # Who is started at this moment cannot answer yet.
                names = [a.name for a in self.unfinished.values()]
                known = [a for a in self.unfinished.values() if a.identity is not None]
                silent = sorted({a.name for a in known} - self._answering(known))
                if silent or time.monotonic() > deadline:
                    raise ActorLostError(f"{' and '.join(silent or names)} did not answer")
        return [results[call] for call in calls]

    def _answering(self, actors: Sequence[Actor]) -> set[str]:
        """The names of those of these actors that answer, if only by failing."""
        asked = {actor.handle.identify.remote(): actor.name for actor in actors}
        if not asked:
            return set()
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        return {asked[call] for call in done}

    def result(self, actor: Actor, call: ray.ObjectRef[Any]) -> Any:
        """What a call to an actor gave.

        Raises:
            ActorLostError: when the actor is lost, or one that it was sending to.
        """
        try:
            return ray.get(call)
        except RayError as error:
            raise to_raise(actor.name, error) from error

    def stop(self) -> None:
        """Let the actors end their chunks and report what they did; nobody waits for it here."""
        for actor in self._there():
            actor.handle.stop.options(num_returns=0).remote(self.incarnation)

    def abandon(self) -> None:
        """Let the actors drop what they are at, wherever they wait; nobody waits for it here."""
        for actor in self._there():
            actor.handle.abandon.options(num_returns=0).remote(self.incarnation)

    def _there(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.handle is not None]

    def doing(self) -> dict[str, Doing | None]:
        """What each actor does; None of those who do not answer, or are lost."""
        asked = {actor.name: actor.handle.doing.remote() for actor in self._there()}
        calls = list(asked.values())
        answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)
        told: dict[str, Doing | None] = {}
        for name, call in asked.items():
            try:
                told[name] = ray.get(call) if call in answered else None
            except RayError:
                told[name] = None
        return told

    def lost(self) -> list[Loss]:
        """Find out who is lost, and end those who do not answer.

        Raises:
            ActorLostError: when Ray does not decide within the patience whether one is lost.
        """
        return [loss for actor in self._there() for loss in self._ending(actor, "")]

    def end(self, actor: Actor, why: str) -> Loss:
        """End an actor that does not go on.

        Args:
            why: what it did, after its name.
        """
        (loss,) = self._ending(actor, why)
        return loss

    def _ending(self, actor: Actor, why: str) -> list[Loss]:
        """The loss of an actor, once it is certain; nothing of one that answers.

        Args:
            why: end it, also if it answers, because of this; "" asks first.
        """
        if why:
            ray.kill(actor.handle)
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            call = actor.handle.identify.remote()
            answered, _ = ray.wait([call], timeout=ANSWER_SECONDS)
            try:
                if answered:
                    actor.identity = ray.get(call)
                    if not why:
                        return []
                elif not why and actor.identity is not None:  # else it is still being started
                    why = f"did not answer for {ANSWER_SECONDS:g} s"
                    ray.kill(actor.handle)
            except RayError as error:
                if is_definite(error):
                    loss = self._bury(actor, error)
                    hung = why and loss.kind != "node"
                    return [replace(loss, kind="hang", cause=why) if hung else loss]
            time.sleep(AGAIN_SECONDS)  # Ray has no event for this
        raise ActorLostError(
            f"{actor.name} was out of reach for engine.recovery.patience = {self._patience:g} s"
        )

    def _bury(self, actor: Actor, error: RayError) -> Loss:
        identity, actor.handle, actor.identity = actor.identity, None, None
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return describe(actor.name, identity, error, identity is None or identity.node in alive)

    def make_room(self) -> None:
        """Wait until there is room again for every actor that is missing.

        Raises:
            NoRoomError: when there is none in time.
        """
        for actor in self.actors:
            if actor.handle is not None:
                continue
            try:
                self._placement.wait(actor.block, self._patience)
            except TimeoutError as error:
                raise NoRoomError(
                    f"the cluster had no room for {actor.name} again within "
                    f"engine.recovery.patience = {self._patience:g} s: add a node, or resume the "
                    "run on another cluster"
                ) from error

    def close(self) -> None:
        """End the actors and give their resources back."""
        for actor in self.actors:
            if actor.handle is not None:
                ray.kill(actor.handle)
        self._placement.remove()
