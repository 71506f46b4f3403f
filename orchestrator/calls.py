"""Calls to actors of a chain, and what follows when one does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from actors.operations import Doing
from orchestrator.lane import Actor
from orchestrator.losses import ActorLostError, Loss, describe, is_definite, to_raise

ANSWER_SECONDS = 5.0  # an actor answers within milliseconds, whatever it computes
AGAIN_SECONDS = 0.1


def result(actor: Actor, call: ray.ObjectRef[Any]) -> Any:
    """What a call to an actor gave.

    Raises:
        ActorLostError: when the actor is lost, or one that it was sending to.
    """
    try:
        return ray.get(call)
    except RayError as error:
        raise to_raise(actor.name, error) from error


class Calls:
    """The same call to several actors at once.

    Attributes:
        unfinished: calls that were given up, with their actors.

    Args:
        patience: seconds for what an actor does not do at once.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.unfinished: dict[ray.ObjectRef[Any], Actor] = {}

    def all(self, submit: Callable[[Actor], ray.ObjectRef[Any]], of: Iterable[Actor]) -> list[Any]:
        """The results of a call to each of the actors.

        Raises:
            ActorLostError: when an actor is lost, or does not end its call within the patience.
        """
        calls = {submit(actor): actor for actor in of}
        results: dict[ray.ObjectRef[Any], Any] = {}
        self.unfinished = dict(calls)
        deadline = time.monotonic() + self._patience
        while self.unfinished:
            done, _ = ray.wait(list(self.unfinished), timeout=ANSWER_SECONDS)
            for call in done:
                results[call] = result(self.unfinished.pop(call), call)
            if not done:
                # Who is started at this moment cannot answer yet.
                names = [a.name for a in self.unfinished.values()]
                known = [a for a in self.unfinished.values() if a.identity is not None]
                silent = sorted({a.name for a in known} - _answering(known))
                if silent or time.monotonic() > deadline:
                    raise ActorLostError(f"{' and '.join(silent or names)} did not answer")
        return [results[call] for call in calls]


def _answering(actors: Sequence[Actor]) -> set[str]:
    """The names of those of these actors that answer, if only by failing."""
    asked = {actor.handle.identify.remote(): actor.name for actor in actors}
    if not asked:
        return set()
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    return {asked[call] for call in done}


def doing(actors: Iterable[Actor]) -> dict[str, Doing | None]:
    """What each actor does; None of those who do not answer, or are lost."""
    asked = {actor.name: actor.handle.doing.remote() for actor in actors}
    calls = list(asked.values())
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)
    told: dict[str, Doing | None] = {}
    for name, call in asked.items():
        try:
            told[name] = ray.get(call) if call in answered else None
        except RayError:
            told[name] = None
    return told


def endings(actors: Iterable[Actor], why: str, patience: float) -> list[Loss]:
    """The losses of actors, once each is certain; nothing of those that answer.

    All are asked at the same time: of a frozen node nobody answers.

    Args:
        why: end them, also if they answer, because of this; "" asks first.
        patience: seconds for Ray to decide whether they are lost.

    Raises:
        ActorLostError: when Ray does not decide in time.
    """
    reasons = dict.fromkeys(actors, why)
    for actor in reasons if why else ():
        ray.kill(actor.handle)
    losses: dict[Actor, Loss | None] = {}
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        asked = {a: a.handle.identify.remote() for a in reasons if a not in losses}
        if not asked:
            return [loss for a in reasons if (loss := losses[a]) is not None]
        calls = list(asked.values())
        answered = set(ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)[0])
        for actor, call in asked.items():
            try:
                if call in answered:
                    actor.identity = ray.get(call)
                    if not reasons[actor]:
                        losses[actor] = None
                elif not reasons[actor] and actor.identity is not None:  # else it is being started
                    reasons[actor] = f"did not answer for {ANSWER_SECONDS:g} s"
                    ray.kill(actor.handle)
            except RayError as error:
                if is_definite(error):
                    losses[actor] = _loss(actor, error, reasons[actor])
        if len(losses) < len(reasons):
            time.sleep(AGAIN_SECONDS)  # Ray has no event for this
    names = " and ".join(actor.name for actor in reasons if actor not in losses)
    raise ActorLostError(f"{names} was out of reach for engine.recovery.patience = {patience:g} s")


def _loss(actor: Actor, error: RayError, why: str) -> Loss:
    loss = _bury(actor, error)
    return replace(loss, kind="hang", cause=why) if why and loss.kind != "node" else loss


def _bury(actor: Actor, error: RayError) -> Loss:
    identity, actor.handle, actor.identity = actor.identity, None, None
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return describe(actor.name, identity, error, identity is None or identity.node in alive)
