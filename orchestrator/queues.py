"""What was handed to each actor: its part of each chunk of steps, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ray

from actors.operations import Operation, Report
from actors.shell import Change
from learning.build import Program
from orchestrator.chain import Chain
from orchestrator.dependencies import SOURCE
from orchestrator.lane import Actor
from orchestrator.program import (
    Calendar,
    Part,
    block_program,
    feedback_program,
    parts,
    source_program,
    with_batches,
)
from orchestrator.turns import Turn


class Call(NamedTuple):
    """A chunk that was handed out.

    Attributes:
        leads: whether its lane leads: what the others report is the same.
    """

    ref: ray.ObjectRef[Report]
    leads: bool


@dataclass(eq=False)
class Queue:
    """One actor, and the chunks that were handed to it.

    Attributes:
        leaves: whether what it was handed last is its last.
    """

    actor: Actor
    calls: deque[Call] = field(default_factory=deque)
    leaves: bool = False

    def hand(self, operations: list[Operation], leads: bool, change: Change | None) -> None:
        """Hand it a chunk, and a change in its connections before it."""
        arguments = (operations,) if change is None else (operations, change)
        self.calls.append(Call(self.actor.handle.run.remote(*arguments), leads))


def hand_out(
    queues: Sequence[Queue], chain: Chain, calendar: Calendar, chunk: range, turn: Turn | None
) -> None:
    """Hand each actor its part of a chunk, and of what changes before it."""
    lanes = parts(chain.program, len(chain.lanes))
    part_of = {lane.number: part for lane, part in zip(chain.lanes, lanes, strict=True)}
    separate = any(actor.learner == SOURCE for actor in chain.actors)
    for queue in queues:
        actor = queue.actor
        change = turn.changes.get(actor) if turn else None
        first = turn.first.get(actor, []) if turn else []
        if not queue.leaves:
            part = part_of[actor.lane]
            rest = _operations(chain.program, actor, calendar, chunk, part, separate)
            queue.hand([*first, *rest], part.leads, change)
        elif turn is not None:  # its last; later chunks are not its
            queue.hand(first, False, change)


def _operations(
    program: Program, actor: Actor, calendar: Calendar, chunk: range, part: Part, separate: bool
) -> list[Operation]:
    """An actor's program.

    Args:
        separate: whether batches are made by an actor of their own.
    """
    if actor.learner == SOURCE:
        return source_program(program, calendar, chunk, part)
    if actor.learner.startswith("feedback"):
        return feedback_program(program, calendar, chunk, part)
    operations = block_program(program, actor.block, calendar, chunk, part)
    return operations if actor.block > 1 or separate else with_batches(operations)
