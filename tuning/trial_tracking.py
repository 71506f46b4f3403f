"""The trials of a sweep in MLflow: the driver is the only writer, trials tell it through Tune."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tuning.jobs import STEP
from tuning.known import Known
from tuning.space import Values
from tuning.tracking import Status, reason

BEST = "best"
"""The alias of the best trial's model."""
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A run of MLflow for a sweep, with one for each trial inside it."""

    @property
    def run_id(self) -> str | None:
        """Of the sweep's run."""
        ...

    def start_trial(
        self, name: str, parameters: Mapping[str, object], tags: Mapping[str, str], *, wait: float
    ) -> str | None:
        """Start a trial's run, or go on with it; its id, if that is known within some seconds."""
        ...

    def log_metrics(self, trial_name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a trial."""
        ...

    def mutated(self, trial_name: str, step: int, parameters: Mapping[str, object]) -> None:
        """Record that a trial goes on with other settings."""
        ...

    def artifact(self, trial_name: str, path: Path, directory: str | None = None) -> None:
        """Send a file of a trial."""
        ...

    def sweep_artifact(self, path: Path, directory: str | None = None) -> None:
        """Send a file of the sweep itself."""
        ...

    def log_model(self, trial_name: str, model: nn.Module, example_input: Tensor) -> None:
        """Send a trial's model; `example_input` is (B, *shape)."""
        ...

    def register(self, trial_name: str, model_name: str, alias: str) -> None:
        """Make a trial's model the newest version of a registered model, with an alias."""
        ...

    def end_trial(self, trial_name: str, status: Status) -> None:
        """Close a trial's run."""
        ...

    def end(self, status: Status) -> None:
        """Close the sweep's run."""
        ...


@dataclass(frozen=True)
class Description:
    """What MLflow is told about a run.

    Attributes:
        parameters: by dotted key.
        files: writes the files that say more.
    """

    parameters: Mapping[str, object]
    tags: Mapping[str, str]
    files: Callable[[], Sequence[Path]]


Describe = Callable[[Path], Description]
"""The directory of a run to what MLflow is told about it."""


class Tracking:
    """Feeds the trials of a sweep to MLflow; what cannot be told does not stop the sweep.

    Nothing here waits for MLflow: the tracker has a queue on disk.
    """

    def __init__(self, tracker: Tracker, known: Known, describe: Describe) -> None:
        self._tracker, self._known, self._describe = tracker, known, describe
        self._running: set[str] = set()
        self._said = ""
        known.sweep(tracker.run_id)

    def told(self, name: str, run: Path, result: Mapping[str, Any], changed: Values) -> None:
        """A trial has reported.

        Args:
            run: directory of its run.
            changed: varied settings with which it has taken over from another trial, if it has.
        """
        self._attempt(lambda: self._told(name, run, result, changed))

    def _told(self, name: str, run: Path, result: Mapping[str, Any], changed: Values) -> None:
        before, step = self._known.last(name), result[STEP]
        is_new = before is None or before[0] != run.name
        if is_new or name not in self._running:
            # What another run of the same trial has otherwise becomes tags.
            made = self._describe(run)
            self._tracker.start_trial(name, made.parameters, made.tags, wait=0.0)
            self._running.add(name)
        if not is_new and before is not None and before[1] >= step:
            return  # told again after a loss, or by a resumed sweep
        if is_new and changed:
            self._tracker.mutated(name, step, changed)
        metrics = {key: value for key, value in result.items() if _is_metric(key, value)}
        self._tracker.log_metrics(name, step, metrics)
        self._known.told(name, run.name, step)

    def over(self, name: str, run: Path, status: Status, why: str = "") -> None:
        """A trial is over.

        Args:
            run: directory of its run, which may never have been made.
            why: a sentence, of a trial that failed or was lost.
        """
        self._attempt(lambda: self._over(name, run, status, why))

    def _over(self, name: str, run: Path, status: Status, why: str) -> None:
        made = self._describe(run) if run.exists() else Description({}, {}, tuple)
        if name not in self._running or why:
            tags = {**made.tags, "why": why} if why else made.tags
            self._tracker.start_trial(name, made.parameters, tags, wait=0.0)
        for file in made.files():
            self._tracker.artifact(name, file)
        self._tracker.end_trial(name, status)
        self._running.discard(name)

    def best(self, name: str, model: nn.Module, example_input: Tensor, model_name: str) -> None:
        """Log the model of the best trial, and register it.

        Args:
            example_input: (B, *shape).
            model_name: of the registered model.
        """
        if self._attempt(lambda: self._tracker.log_model(name, model, example_input)):
            self._attempt(lambda: self._tracker.register(name, model_name, BEST))

    def end(self, status: Status, files: Sequence[Path] = ()) -> None:
        """The sweep is over, or interrupted; so are the trials that were running.

        Args:
            files: of the sweep itself.
        """
        for name in sorted(self._running):
            self._attempt(lambda name=name: self._tracker.end_trial(name, "KILLED"))
        for path in files:
            self._attempt(lambda path=path: self._tracker.sweep_artifact(path))
        self._attempt(lambda: self._tracker.end(status))

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Try, and say why where that fails, unless it is the same as before."""
        try:
            act()
        except Exception as error:  # of the disk, a run's records, torch.export, MLflow
            if (why := reason(error)) != self._said:
                self._said = why
                _log.warning("MLflow is not told everything (%s): the sweep goes on", why)
            return False
        return True


def _is_metric(key: str, value: Any) -> bool:
    """Whether a part of a result is a trial's metric: Tune adds much of its own."""
    return "/" in key and isinstance(value, int | float) and not isinstance(value, bool)
