"""Observers of training: MLflow, and progress on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from actors.operations import Span
from orchestrator.events import Changed, Metrics
from orchestrator.incidents import Incident
from orchestrator.trainer import Observer
from tuning.tracking import Status, Tracker, reason

_log = logging.getLogger(__name__)
PLAIN_SECONDS = 5.0  # between plain lines when the output is not a terminal


class TrackingObserver(Observer):
    """Sends every learner's metrics to MLflow; where that fails, training goes on without it.

    To import MLflow and open its database takes longer than the first step, and so a thread does
    both from the end of that step on. An MLflow that refuses the run ends it at the next metrics.

    Args:
        connect: starts a run of MLflow, or goes on with one; called once, in a thread.
        connected: is told the run's id; called by the thread that observes.
    """

    def __init__(self, connect: Callable[[], Tracker], connected: Callable[[str], None]) -> None:
        self._connect, self._connected = connect, connected
        self._connecting: Future[Tracker] | None = None
        self._tracker: Tracker | None = None
        self._early: list[tuple[int, dict[str, float], int]] = []
        self._refused, self._failed, self._dropped = False, False, 0

    def stepped(self, step: int, metrics: Metrics) -> None:
        self._log(step, "train", metrics)

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self._log(step, split, metrics)

    def wait(self) -> Tracker:
        """Wait until MLflow is connected, and hand it what came before.

        Raises:
            UserError: when it refuses the run.
        """
        if self._tracker is None:
            begun = self._begun()
            wait_for([begun])
            self._refused = begun.exception() is not None
            self._tracker = tracker = begun.result()
            if tracker.run_id is not None:
                self._connected(tracker.run_id)
            for step, metrics, measured in self._early:
                self._send(tracker, step, metrics, measured)
            self._early.clear()
        return self._tracker

    def recovered(self, incident: Incident) -> None:
        self._log(incident.step, "incidents", {"all": incident.metrics()})

    def changed(self, change: Changed) -> None:
        self._log(change.step, "changes", {"all": {"lanes": float(change.lanes)}})

    def artifact(self, path: Path, directory: str | None = None) -> None:
        """Send a file."""
        tracker = self.wait()
        self._attempt(lambda: tracker.log_artifact(path, directory))

    def end(self, status: Status) -> None:
        """Close the run of MLflow; say what it lacks.

        Raises:
            UserError: when MLflow refuses the run and nobody was told.
        """
        if self._refused:
            return  # the run ends because of that, or has been told
        tracker = self.wait()
        tried_before = self._failed
        self._failed = False  # the last attempt is worth its time: what waits may still be sent
        self._attempt(lambda: tracker.end(status), quietly=tried_before)
        lacking = self._dropped + tracker.waiting
        if tried_before or self._failed:
            _log.warning(
                "MLflow lacks %d metrics of this run, and perhaps files: the run directory has all",
                lacking,
            )

    def _begun(self) -> Future[Tracker]:
        if self._connecting is None:
            executor = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
            self._connecting = executor.submit(self._connect)
            executor.shutdown(wait=False)  # the thread ends with its one task
        return self._connecting

    def _log(self, step: int, split: str, metrics: Metrics) -> None:
        flat = {f"{split}/{n}/{m}": v for n, values in metrics.items() for m, v in values.items()}
        measured = time.time_ns() // 1_000_000
        if self._tracker is None and not self._begun().done():
            self._early.append((step, flat, measured))
        else:
            self._send(self.wait(), step, flat, measured)

    def _send(self, tracker: Tracker, step: int, metrics: dict[str, float], measured: int) -> None:
        if self._failed:
            self._dropped += len(metrics)
        self._attempt(lambda: tracker.log_metrics(step, metrics, measured))

    def _attempt(self, act: Callable[[], None], *, quietly: bool = False) -> None:
        """Try only until the first failure: with a dead server each attempt takes minutes."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # of MLflow, a database driver, requests or the system
            self._failed = True
            if not quietly:
                _log.warning("MLflow failed (%s): training goes on without it", reason(error))


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
