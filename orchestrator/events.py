"""What engines tell the trainer, in the order of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from actors.operations import Span
from orchestrator.incidents import Incident
from orchestrator.program import Calendar
from orchestrator.stopping import Stopping

State = dict[str, dict[str, Tensor]]
"""Tensors by learner, then by name."""

Metrics = dict[str, dict[str, float]]
"""By learner (`block1`, `feedback1`), then by metric."""


@dataclass(frozen=True)
class StepDone:
    """Every learner has finished its step `step`."""

    step: int
    metrics: Metrics


@dataclass(frozen=True)
class Evaluated:
    """`split` was evaluated with the weights after step `step`."""

    step: int
    split: str
    metrics: Metrics


@dataclass(frozen=True)
class SnapshotTaken:
    """The state of every learner after step `step`."""

    step: int
    state: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Worked:
    """What one actor did lately."""

    actor: str
    spans: list[Span]
    bytes_sent: int


@dataclass(frozen=True)
class Changed:
    """The chain of actors changed before step `step`, without stopping.

    Attributes:
        what: a sentence for people.
        lanes: how many there are now.
        actors: names of those that are in the chain now; those that left may still report once.
    """

    step: int
    what: str
    lanes: int
    actors: frozenset[str] = frozenset()


Event = StepDone | Evaluated | SnapshotTaken | Worked | Changed


class Kept(Protocol):
    """What an engine needs of who runs it, to survive losses."""

    def restore(self, at_most: int) -> tuple[int, State | None]:
        """The newest state that was kept, of a step of at most `at_most`.

        Returns:
            The step, at which to go on, and the state; None for that at the start of the run.
        """
        ...

    def record(self, incident: Incident) -> None:
        """Take note of what happened; called once, when it is over."""
        ...


class Engine(Protocol):
    """Runs a program over a range of steps."""

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        """Load a snapshot; training goes on at `step`."""
        ...

    def train(
        self,
        steps: range,
        calendar: Calendar,
        kept: Kept | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Event]:
        """Train; yields events, steps in order.

        A snapshot is kept when the iteration goes on after it.

        Args:
            kept: for an engine that can lose what it works with; without it a loss ends the run.
            stopping: when somebody asks for it, the events end with a snapshot after the next step
                whose end is possible, of which all that is finished is a part.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
