"""Faults as data: which process fails how, at which step; and runs that have them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from torch import Tensor

from actors.operations import Kind, Operation
from orchestrator.chain import Actor
from orchestrator.engine import RayEngine
from orchestrator.events import Event, Recovered, SnapshotTaken
from orchestrator.incidents import Incident
from tests.orchestrator.engines import CALENDAR, STEPS, Told, told

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Fault:
    """What one actor does instead of an operation; `kind` is a name in `signal`.

    Attributes:
        at: the operation that it does not begin, by kind and step; None: being built anew.
    """

    kind: Literal["SIGKILL", "SIGSTOP"]
    target: str
    at: tuple[Kind, int] | None

    def plant(self, actor: Actor) -> None:
        """Prepare the actor; whoever takes its place is not."""
        number, at = signal.Signals[self.kind], self.at

        def prepare(shell: Any) -> None:
            def fail(*_: object) -> None:
                os.kill(os.getpid(), number)

            if at is None:
                shell._renew = fail
                return
            execute = shell._executor.execute

            def watched(op: Operation) -> None:
                if (op.kind, op.step) == at:
                    fail()
                execute(op)

            shell._executor.execute = watched

        ray.get(actor.handle.__ray_call__.remote(prepare))


class Keeper:
    """Keeps snapshots as a trainer does, in memory."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.asked: list[int] = []

    def keep(self, event: Event) -> None:
        """Keep the event's snapshot, if it is one."""
        if isinstance(event, SnapshotTaken):
            self.states[event.step + 1] = event.state

    def restore(self, at_most: int) -> tuple[int, State | None]:
        """The newest of them."""
        self.asked.append(at_most)
        step = max((step for step in self.states if step <= at_most), default=0)
        return step, self.states.get(step)


def run_with(engine: RayEngine, faults: Sequence[Fault]) -> tuple[list[Told], list[Incident]]:
    """All that an engine tells of a run with faults, and its incidents."""
    actors = {actor.name: actor for actor in engine._chain.actors}
    for fault in faults:
        fault.plant(actors[fault.target])
    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper.restore):
        keeper.keep(event)
        events.append(event)
    incidents = [event.incident for event in events if isinstance(event, Recovered)]
    return told(e for e in events if not isinstance(e, Recovered)), incidents
