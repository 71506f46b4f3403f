"""Faults as data: which process fails how, at which step; and runs that have them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from torch import Tensor

from actors.operations import Kind, Operation
from orchestrator.engine import RayEngine
from orchestrator.events import Event, SnapshotTaken
from orchestrator.incidents import Incident
from orchestrator.lane import Actor
from tests.orchestrator.engines import CALENDAR, STEPS, Told, told

State = dict[str, dict[str, Tensor]]
ANY_STEP = -1


@dataclass(frozen=True)
class Fault:
    """What one actor does instead of an operation.

    Attributes:
        kind: the signal that it sends itself; or it waits for ever, while its mail answers.
        at: the operation that it does not begin, by kind and step, or any step; None: being
            built anew.
        also: another that gets the signal just before.
    """

    kind: Literal["SIGKILL", "SIGSTOP", "wait"]
    target: str
    at: tuple[Kind, int] | None
    also: str | None = None

    def plant(self, actors: Mapping[str, Actor]) -> None:
        """Prepare the target; whoever takes its place is not."""
        kind, at, other = self.kind, self.at, actors.get(self.also or "")
        also = None if other is None or other.identity is None else other.identity.process

        def prepare(shell: Any) -> None:
            def fail(*_: object) -> None:
                if kind == "wait":
                    threading.Event().wait()
                if also is not None:
                    os.kill(also, signal.Signals[kind])
                # To this thread: of a signal to the process, another may see to it later.
                signal.pthread_kill(threading.get_ident(), signal.Signals[kind])

            if at is None:
                shell._let_go = fail
                return
            execute = shell._executor.execute

            def watched(op: Operation) -> None:
                if op.kind is at[0] and at[1] in (op.step, ANY_STEP):
                    fail()
                execute(op)

            shell._executor.execute = watched

        ray.get(actors[self.target].handle.__ray_call__.remote(prepare))


class Keeper:
    """Keeps snapshots as a trainer does, in memory."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.asked: list[int] = []
        self.incidents: list[Incident] = []

    def keep(self, event: Event) -> None:
        """Keep the event's snapshot, if it is one."""
        if isinstance(event, SnapshotTaken):
            self.states[event.step + 1] = event.state

    def restore(self, at_most: int) -> tuple[int, State | None]:
        """The newest of them."""
        self.asked.append(at_most)
        step = max((step for step in self.states if step <= at_most), default=0)
        return step, self.states.get(step)

    def record(self, incident: Incident) -> None:
        """Keep the incident."""
        self.incidents.append(incident)


def by_name(engine: RayEngine) -> dict[str, Actor]:
    """The actors of an engine."""
    return {actor.name: actor for actor in engine._chain.actors}


def run_with(engine: RayEngine, faults: Sequence[Fault]) -> tuple[list[Told], list[Incident]]:
    """All that an engine tells of a run with faults, and its incidents."""
    actors = by_name(engine)
    for fault in faults:
        fault.plant(actors)
    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
    return told(events), keeper.incidents
