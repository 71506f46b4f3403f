"""What the tests of the trainer share: scripted engines, their events, and who hears of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from actors.operations import Span
from orchestrator.events import Evaluated, Event, Kept, Metrics, SnapshotTaken, StepDone
from orchestrator.incidents import Incident
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from orchestrator.trainer import Observer, Trainer

RULE = {"kind": "local"}


class Scripted:
    """An engine that tells what it is given, and then raises what it is given."""

    def __init__(self, events: Iterable[Event], error: BaseException | None = None) -> None:
        self.events, self.error = events, error

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        raise AssertionError("the trainer loads nothing")

    def train(
        self,
        steps: range,
        calendar: Calendar,
        kept: Kept | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Event]:
        yield from self.events
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        raise AssertionError("who made the engine closes it")


class Recorder(Observer):
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def stepped(self, step: int, metrics: Metrics) -> None:
        self.heard.append(("stepped", step, metrics))

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self.heard.append(("evaluated", step, split, metrics))

    def recovered(self, incident: Incident) -> None:
        self.heard.append(("recovered", incident.number))

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        self.heard.append(("worked", actor, list(spans)))


def trainer(run: RunDirectory, *observers: Recorder) -> Trainer:
    return Trainer(run, run.checkpoints, "0123", RULE, "block2", observers)


def train(run: RunDirectory, events: Sequence[Event], error: BaseException | None = None) -> None:
    trainer(run).train(Scripted(events, error), range(100), Calendar())


def step_done(step: int) -> StepDone:
    return StepDone(step, {"block1": {"loss": 2.0 + step, "accuracy": 0.25}, "block2": {}})


def validated(step: int, accuracy: float, loss: float = 1.0) -> Evaluated:
    other = {"loss": 1.0, "accuracy": 0.99}  # of block 1, which must not matter
    mine = {"loss": loss, "accuracy": accuracy}
    return Evaluated(step, "validation", {"block1": other, "block2": mine})


def snapshot(step: int, value: float | None = None) -> SnapshotTaken:
    weight = torch.full((3,), float(step) if value is None else value)
    return SnapshotTaken(
        step, {"block1": {"model.w": weight}, "block2": {"model.n": torch.tensor(1)}}
    )


def checkpointed(step: int, accuracy: float) -> list[Event]:
    return [step_done(step), validated(step, accuracy), snapshot(step)]
