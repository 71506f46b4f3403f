"""Turns: what changes in the chain at a step boundary, while the stream goes on.

Whoever is new starts from the state of one that has the same learner: that one sends it after its
last operation before the boundary, as a message. What was under way to someone new is sent again by
who sent it. So the first operation of the step that follows finds what it would have found without
the turn, wherever each actor is in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.executors import LANE
from actors.operations import Kind, Operation
from actors.shell import Change
from orchestrator.chain import Chain
from orchestrator.lane import Actor, Lane
from orchestrator.program import channels

SUCCESSOR = "successor"


@dataclass
class Turn:
    """What actors do between the last operation before a step and the first one of it.

    Attributes:
        changes: in connections.
        first: operations, after those changes.
        leaving: who does nothing else any more.
        sentence: for people.
    """

    step: int
    sentence: str
    changes: dict[Actor, Change] = field(default_factory=dict)
    first: dict[Actor, list[Operation]] = field(default_factory=dict)
    leaving: list[Actor] = field(default_factory=list)


def _learners(lane: Lane) -> Iterable[Actor]:
    return (actor for actor in lane.actors if actor.learns)


def join(chain: Chain, lane: Lane, step: int) -> Turn:
    """Another lane begins at `step`, from the state of the one that leads."""
    turn = Turn(step, f"lane {lane.number} joined: now {len(chain.lanes) + 1}")
    name = f"{LANE}{lane.number}"
    for other in chain.lanes:
        for twin in _learners(other):
            turn.changes[twin] = Change({name: (lane.peer(twin.learner), None)})
    for twin in _learners(chain.lanes[0]):
        turn.first[twin] = [Operation(Kind.HAND_OVER, step, to=name)]
    for actor in lane.actors:
        turn.changes[actor] = chain.connections(actor, lane)
    for actor in _learners(lane):
        receivers = channels(chain.program, actor.learner, 1)
        resent = (Operation(Kind.RESEND, step, to=receiver) for receiver in receivers)
        turn.first[actor] = [Operation(Kind.JOIN, step), *resent]
    chain.lanes.append(lane)
    return turn


def keep(chain: Chain, step: int) -> Turn:
    """Nothing changes, but the learners of the lane that leads copy the state before `step`."""
    snapshot = Operation(Kind.SNAPSHOT, step - 1)
    return Turn(step, "", first={actor: [snapshot] for actor in _learners(chain.lanes[0])})


def leave(chain: Chain, lane: Lane, step: int, why: str) -> Turn:
    """A lane does nothing from `step` on; the others share its shards."""
    chain.lanes.remove(lane)
    chain.spare.append(lane)
    turn = Turn(step, f"lane {lane.number} left, {why}: now {len(chain.lanes)}")
    for other in chain.lanes:
        for twin in _learners(other):
            turn.changes[twin] = Change({}, (f"{LANE}{lane.number}",))
    for actor in lane.actors:
        turn.first[actor] = [Operation(Kind.LEAVE, step)]
    turn.leaving = list(lane.actors)
    return turn


def move(chain: Chain, lane: Lane, there: Lane, step: int, why: str) -> Turn:
    """Actors of a lane go on elsewhere from `step` on.

    Args:
        there: their successors and where those are; afterwards, whom and what they replaced.
    """
    new = {actor.learner: actor for actor in there.actors}
    old = [actor for actor in lane.actors if actor.learner in new]
    blocks = " and ".join(actor.name for actor in old if actor.is_block)
    turn = Turn(step, f"{blocks} moved, {why}", leaving=old)
    lane.actors[:] = [new.get(actor.learner, actor) for actor in lane.actors]
    lane.placement.exchange(there.placement)
    there.actors = old
    chain.spare.append(there)
    leaving = Operation(Kind.LEAVE, step)
    for actor in old:
        turn.first[actor] = [leaving]
        if actor.learns:
            turn.changes[actor] = Change({SUCCESSOR: (new[actor.learner].peer, None)})
            turn.first[actor] = [Operation(Kind.HAND_OVER, step, to=SUCCESSOR), leaving]
    for actor in lane.actors:
        receivers = [name for name in channels(chain.program, actor.learner, 1) if name in new]
        resent = [Operation(Kind.RESEND, step, to=name) for name in receivers if actor.learns]
        if new.get(actor.learner) is actor:
            turn.changes[actor] = chain.connections(actor, lane)
            turn.first[actor] = [Operation(Kind.JOIN, step), *resent] if actor.learns else []
        elif receivers:
            added = chain.connections(actor, lane).added
            turn.changes[actor] = Change({name: added[name] for name in receivers})
            turn.first[actor] = resent
    for other in chain.lanes:
        for twin in () if other is lane else _learners(other):
            if twin.learner in new:
                turn.changes[twin] = Change(
                    {f"{LANE}{lane.number}": (new[twin.learner].peer, None)}
                )
    return turn
