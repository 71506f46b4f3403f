"""The trainer: follows an engine's events and keeps the run's records and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from actors.operations import Span
from learning.data.preprocessing import Preprocessing
from learning.errors import NonFiniteLossError, UserError
from orchestrator.background import Background
from orchestrator.checkpoints import Checkpoints
from orchestrator.events import (
    Changed,
    Engine,
    Evaluated,
    Event,
    Metrics,
    SnapshotTaken,
    StepDone,
    Worked,
)
from orchestrator.fingerprints import Fingerprints
from orchestrator.finite import check_finite, check_losses, not_finite
from orchestrator.incidents import Incident
from orchestrator.losses import ActorLostError, Loss
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from orchestrator.storage import StorageError

_log = logging.getLogger(__name__)


class StopTraining(Exception):  # noqa: N818 - no error
    """An observer raises it to end a run early: its records say `stopped`, and it can go on.

    Args:
        checkpoint: whose weights the run ends with: "last", "best" or a step. None: nobody takes
            them, and what trains the run raises this on.
    """

    def __init__(self, checkpoint: str | int | None = "last") -> None:
        super().__init__("an observer stopped this run")
        self.checkpoint = checkpoint


class Observer:
    """Whoever wants to know how training goes; called in the order of steps. This one does not.

    Attributes:
        waits_for_saved: each checkpoint is to be complete, and told, before anything later is.
    """

    waits_for_saved = False

    def stepped(self, step: int, metrics: Metrics) -> None:
        """Every learner has finished `step`."""

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        """A split was evaluated with the weights after `step`."""

    def saved(self, steps: int) -> None:
        """A checkpoint of so many finished steps is complete."""

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        """An actor reported what it did."""

    def sent(self, actor: str, size: int) -> None:
        """In what it reported last an actor sent messages of `size` bytes; follows `worked`."""

    def recovered(self, incident: Incident) -> None:
        """Actors were lost, and what was lost with them has been done again."""

    def changed(self, change: Changed) -> None:
        """Lanes came or went, or blocks moved, without stopping the run."""


@dataclass
class Trainer:
    """Runs an engine to the end of the schedule, recording as it goes.

    A snapshot is written while training goes on; the next one waits until it is.

    Attributes:
        keep: how many of the newest checkpoints stay, besides the best.
        fingerprints: of the run, for its checkpoints.
        preprocessing: of the data, for the checkpoints.
        stopping: whether the run is to end before its last step.
    """

    run: RunDirectory
    checkpoints: Checkpoints
    plan_hash: str
    rule: Mapping[str, Any]
    last_block: str
    observers: Sequence[Observer] = ()
    keep: int = 2
    fingerprints: Fingerprints | None = None
    preprocessing: Preprocessing | None = None
    stopping: Stopping = field(default_factory=Stopping)
    _validated: dict[int, float] = field(default_factory=dict)
    _first: int = 0
    _stop: int = 0
    _done: int = 0
    _writing: Background = field(default_factory=Background)
    _written: SnapshotTaken | None = None

    def train(self, engine: Engine, steps: range, calendar: Calendar) -> None:
        """Follow the engine; whatever it raises passes through, with all records flushed.

        Raises:
            KeyboardInterrupt: when the run was asked to stop and has come to a step boundary, whose
                state is a checkpoint now, or cannot come to one.
        """
        self._first, self._done, self._stop = steps.start, steps.start, steps.stop
        try:
            with self.stopping.patiently():
                self._follow(engine.train(steps, calendar, self, self.stopping))
                self._finish_writing()
            if self._done < steps.stop:
                self.stopping.check()
        except BaseException as error:
            try:
                self._finish_writing()
            except UserError as another:  # what ends the run is the one to tell
                _log.warning("%s", another)
            if isinstance(error, NonFiniteLossError):
                self.record(not_finite(error))
            if isinstance(error, ActorLostError) and self.stopping.asked:
                _log.warning("%s", error)  # it would have gone on
                raise KeyboardInterrupt from error
            raise

    def _follow(self, events: Iterable[Event]) -> None:
        for event in events:
            if self._writing.is_done:
                self._finish_writing()
            match event:
                case Worked():
                    self.run.append_spans(event.actor, event.spans)
                    for observer in self.observers:
                        observer.worked(event.actor, event.spans)
                        observer.sent(event.actor, event.bytes_sent)
                case StepDone():
                    self._done = event.step + 1
                    self._record(event.step, "train", event.metrics)
                    for observer in self.observers:
                        observer.stepped(event.step, event.metrics)
                case Evaluated():
                    check_losses(event)
                    self._record(event.step, event.split, event.metrics)
                    if event.split == "validation":
                        self._validated[event.step] = event.metrics[self.last_block]["accuracy"]
                    for observer in self.observers:
                        observer.evaluated(event.step, event.split, event.metrics)
                case SnapshotTaken():
                    self._finish_writing()
                    value = self._validated.pop(event.step, None)
                    self._written = event
                    self._writing.begin(partial(self._save, event, value))
                    if any(observer.waits_for_saved for observer in self.observers):
                        self._finish_writing()
                case Changed():
                    self.run.append_change(event.step, event.what, event.lanes)
                    for observer in self.observers:
                        observer.changed(event)

    def record(self, incident: Incident) -> None:
        """Write an incident down and tell the observers."""
        self.run.append_incident(incident.record())
        for observer in self.observers:
            observer.recovered(incident)

    def restore(self, at_most: int) -> tuple[int, dict[str, dict[str, Tensor]] | None]:
        """The newest whole checkpoint of a step of at most `at_most`, or the start of the run.

        Raises:
            UserError: when there is none and the run did not begin at step 0.
        """
        self._finish_writing()
        # Later ones than the last are of a past that was given up on resuming.
        last = self.checkpoints.last
        newest, skipped = None, list[str]()
        if last is not None:
            newest, skipped = self.checkpoints.newest_valid(min(at_most, last))
        for sentence in skipped:
            _log.warning("%s", sentence)
        if newest is not None:
            return newest.step, newest.state
        if self._first > 0:
            raise UserError(
                f"no checkpoint of {self.run.path} up to step {at_most} is whole, so that what was "
                "lost cannot be restored: bring one back from a copy and --resume"
            )
        return 0, None

    def _record(self, step: int, split: str, metrics: Metrics) -> None:
        flat = {f"{n}/{m}": v for n, values in metrics.items() for m, v in values.items()}
        self.run.append_metrics([{"step": step, "split": split, **flat}])

    def _finish_writing(self) -> None:
        """Wait for the snapshot that is being written; a run goes on without one.

        Raises:
            StorageError: when the last one of the run cannot be written.
            UserError: when one is not finite.
        """
        event, self._written = self._written, None
        if event is None:
            return
        try:
            self._writing.finish()
            self.run.update_state(steps=event.step + 1)
        except StorageError as error:
            if event.step + 1 == self._stop:
                raise
            _log.warning("%s", error)
            loss = Loss("checkpoint", "storage", "", 0, str(error))
            instead = "the run went on without this checkpoint"
            self.record(Incident(0, time.time(), event.step, [loss], instead=instead))
            return
        for observer in self.observers:
            observer.saved(event.step + 1)

    def _save(self, event: SnapshotTaken, value: float | None) -> None:
        """Save a checkpoint; in another thread.

        Args:
            value: of the validation, if there was one.
        """
        finished = event.step + 1
        check_finite(event)
        metrics = None if value is None else {"validation/accuracy": value}
        self.checkpoints.save(
            finished,
            event.state,
            plan_hash=self.plan_hash,
            rule=self.rule,
            metrics=metrics,
            fingerprints=self.fingerprints and self.fingerprints.of(event.state),
            preprocessing=self.preprocessing,
        )
        best = self.checkpoints.best_value
        if value is not None and (best is None or value > best):
            self.checkpoints.mark(last=finished, best=finished, value=value)
        else:
            self.checkpoints.mark(last=finished)
        self.checkpoints.prune(self.keep)
