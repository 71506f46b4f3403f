"""Which errors of Ray mean that an actor is lost, and how to say it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.shell import Identity
from actors.sockets import PeerLostError
from learning.errors import LostError, UserError
from orchestrator.dependencies import LANE_MARK

LossKind = Literal["actor", "node", "memory", "hang", "not finite", "storage"]
"""An actor's process ended, its node ended, it was ended for lack of memory, it did not go on, or
its loss is not finite; or a checkpoint could not be written."""


_LOST = (RayActorError, NodeDiedError, OutOfMemoryError, ObjectLostError)


class ActorLostError(LostError):
    """Actors are lost; the run can go on from its last checkpoint."""


class NoRoomError(ActorLostError):
    """Nothing is left to put a lost actor on."""


@dataclass(frozen=True)
class Loss:
    """The end of one actor, on which node and in which process it was, and why as far as known."""

    name: str
    kind: LossKind
    node: str
    process: int
    cause: str


def to_raise(name: str, error: RayError) -> Exception:
    """The exception for a call to actor `name` that failed: what the user caused comes first."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, PeerLostError):
        ends = f"its connection with {in_words(name)} ended"
        return ActorLostError(f"{in_words(cause.peer)} was lost: {ends}")
    if isinstance(cause, RayTaskError) or not isinstance(cause, RayError):
        return error
    if cause is not error:  # `name` is alive; was it sending to one that is not?
        if not isinstance(cause, _LOST):
            return error
        return ActorLostError(f"a neighbour of {in_words(name)} was lost: {reason(cause)}")
    return ActorLostError(f"{in_words(name)} was lost: {reason(cause)}")


def in_words(name: str) -> str:
    """The name of an actor for people: `block1.lane2` is block1 of lane 2."""
    learner, mark, lane = name.partition(LANE_MARK)
    return f"{learner} of lane {lane}" if mark else name


def is_definite(error: RayError) -> bool:
    """Whether an actor whose call failed so is gone: it may only be out of reach."""
    return not isinstance(error, ActorUnavailableError)


def describe(name: str, identity: Identity | None, error: RayError, node_alive: bool) -> Loss:
    """The loss of an actor whose call failed."""
    memory = isinstance(error, OutOfMemoryError)
    kind = "node" if not node_alive else "memory" if memory else "actor"
    node, process = (identity.node, identity.process) if identity else ("", 0)
    return Loss(name, kind, node, process, reason(error))


def reason(error: Exception) -> str:
    """The part of Ray's text that says why, in one line."""
    text = " ".join(str(error).split())
    for pattern in (
        r"the actor's node was (.*)",
        r"Worker exit detail: (.*?)(?: Some common causes|$)",
        r"is dead because (.*)",
    ):
        if match := re.search(pattern, text):
            text = match[1]
            break
    return text.strip(" .")[:200]
