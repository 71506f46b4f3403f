"""Observers of training: MLflow, and progress on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor, nn

from actors.operations import Span
from orchestrator.events import Changed, Metrics
from orchestrator.incidents import Incident
from orchestrator.readings import Reading
from orchestrator.trainer import Observer
from tuning.tracker import Tracker
from tuning.tracking import Status

_log = logging.getLogger(__name__)
PLAIN_SECONDS = 5.0  # between plain lines when the output is not a terminal


class TrackingObserver(Observer):
    """Writes every learner's metrics down for MLflow; a thread of the tracker sends them.

    To import MLflow and open its database takes longer than the first step, so that the thread
    begins at the end of that step. An MLflow that refuses the run ends it at the next metrics.

    Args:
        connected: is told how MLflow calls the run; called by the thread that observes.
    """

    def __init__(self, tracker: Tracker, connected: Callable[[str], None]) -> None:
        self._tracker, self._connected = tracker, connected
        self._told = self._refused = False

    def stepped(self, step: int, metrics: Metrics) -> None:
        self._log(step, "train", metrics)

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self._log(step, split, metrics)

    def recovered(self, incident: Incident) -> None:
        self._log(incident.step, "incidents", {"all": incident.metrics()})

    def changed(self, change: Changed) -> None:
        self._log(change.step, "changes", {"all": {"lanes": float(change.lanes)}})

    def actors(self, step: int, reading: Reading) -> None:
        """Log how busy the actors are."""
        self._log(
            step,
            "flow",
            {name: {"idle": share} for name, share in reading.idle.items()}
            | {
                name: {"idle": reading.idle[name], "in_flight_bytes": size}
                for name, size in reading.in_flight.items()
            }
            | {"all": {"steps_apart": float(reading.steps_apart)}},
        )

    def wait(self) -> None:
        """Wait until MLflow is reached.

        Raises:
            UserError: when it refuses the run.
        """
        try:
            self._tracker.wait()
        except BaseException:
            self._refused = True
            raise
        self._tell()

    def artifact(self, path: Path, directory: str | None = None) -> None:
        """Log a file."""
        self._tracker.log_artifact(path, directory)

    @property
    def has_model(self) -> bool:
        """Whether MLflow has a model of this run."""
        return self._tracker.has_model

    def model(self, model: nn.Module, example_input: Tensor, step: int) -> None:
        """Log the network with the weights after `step` steps.

        Args:
            example_input: (B, *shape).
        """
        self._tracker.log_model(model, example_input, step)

    def end(self, status: Status) -> None:
        """Close the run of MLflow; say what it lacks.

        Raises:
            UserError: when MLflow refuses the run and nobody was told.
        """
        try:
            if not self._refused:
                self.wait()
        finally:
            left = self._tracker.end(status)
            if left and not self._refused:
                _log.warning("%s", self._tracker.left_behind(left))

    def _tell(self) -> None:
        if not self._told and (run_id := self._tracker.run_id) is not None:
            self._told = True
            self._connected(run_id)

    def _log(self, step: int, split: str, metrics: Metrics) -> None:
        flat = {f"{split}/{n}/{m}": v for n, values in metrics.items() for m, v in values.items()}
        try:
            self._tracker.log_metrics(step, flat)
        except BaseException:
            self._refused = True
            raise
        self._tracker.begin()
        self._tell()


class Progress(Observer):
    """Steps a second, loss and accuracy of each block, idle share of each actor.

    A live table on a terminal, plain lines elsewhere.
    """

    def __init__(self, console: Console, start: int, steps: int) -> None:
        self._console, self._start, self._steps = console, start, steps
        self._step = start
        self._metrics: Metrics = {}
        self._validation: Metrics = {}
        self._idle: dict[str, float] = {}
        self._there: frozenset[str] | None = None  # None: whoever reports
        self._began: float | None = None
        self._first, self._printed = start, 0.0
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._table())
            self._live.stop()

    def stepped(self, step: int, metrics: Metrics) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, step  # the first step holds the start of all actors
        self._step, self._metrics = step + 1, metrics
        last = self._step == self._steps
        if self._live:
            self._live.update(self._table())
        elif now - self._printed >= PLAIN_SECONDS or last:
            self._printed = now
            self._console.print(self._line(), soft_wrap=True, highlight=False)

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self._validation = metrics
        if not self._live:
            parts = [
                f"{name} loss {m['loss']:.3f} accuracy {m['accuracy']:.1%}"
                for name, m in sorted(metrics.items())
            ]
            text = f"step {step + 1}/{self._steps}  {split}: {'  '.join(parts)}"
            self._console.print(text, soft_wrap=True, highlight=False)

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        if spans and (self._there is None or actor in self._there):
            wall = spans[-1].ended - spans[0].started
            work = sum(s.ended - s.started - s.waited - s.blocked for s in spans)
            self._idle[actor] = 1 - work / wall if wall else 0.0

    def recovered(self, incident: Incident) -> None:
        self._idle, self._there = {}, None  # lanes may have been given up
        self._console.print(incident.sentence(), soft_wrap=True, highlight=False, markup=False)

    def changed(self, change: Changed) -> None:
        self._there = change.actors
        self._idle = {name: idle for name, idle in self._idle.items() if name in self._there}
        text = f"before step {change.step}: {change.what}"
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def rate(self) -> float:
        """Steps a second since the first step ended."""
        if self._began is None or self._step - 1 <= self._first:
            return 0.0
        return (self._step - 1 - self._first) / max(1e-9, time.monotonic() - self._began)

    def _line(self) -> str:
        parts = [f"step {self._step}/{self._steps}", f"{self.rate():.1f} steps/s"]
        for name, values in self._metrics.items():
            if "accuracy" in values:
                parts.append(f"{name} loss {values['loss']:.3f} accuracy {values['accuracy']:.1%}")
        idle = ", ".join(f"{name} {share:.0%}" for name, share in sorted(self._idle.items()))
        return "  ".join([*parts, f"idle: {idle}"])

    def _table(self) -> Table:
        table = Table(title=f"step {self._step}/{self._steps}   {self.rate():.1f} steps/s")
        for name in ("actor", "loss", "accuracy", "validation", "idle"):
            table.add_column(name, justify="left" if name == "actor" else "right")
        for name in sorted({*self._metrics, *self._idle}):
            values, validation = self._metrics.get(name, {}), self._validation.get(name, {})
            table.add_row(
                name,
                f"{values['loss']:.3f}" if "loss" in values else "",
                f"{values['accuracy']:.1%}" if "accuracy" in values else "",
                f"{validation['accuracy']:.1%}" if "accuracy" in validation else "",
                f"{self._idle[name]:.0%}" if name in self._idle else "",
            )
        return table
