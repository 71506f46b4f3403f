"""The trials of a sweep in MLflow: the driver is the only writer, trials tell it through Tune."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from orchestrator.files import replace_file
from tuning.space import Values
from tuning.tracking import Status, reason
from tuning.trial import STEP

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
        self,
        name: str,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> str | None:
        """Start a trial's run, or go on with it; its id."""
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
        files: that say more.
    """

    parameters: Mapping[str, object]
    tags: Mapping[str, str]
    files: tuple[Path, ...]


Describe = Callable[[Path], Description]
"""The directory of a run to what MLflow is told about it."""


class Ids:
    """The ids that MLflow has given, kept on disk: a resumed sweep goes on with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str) -> str | None:
        """The id of a trial's run, or of the sweep's by the name `sweep`."""
        return self._known.get(name)

    def put(self, name: str, run_id: str | None) -> None:
        """Keep an id."""
        if run_id is not None and self._known.get(name) != run_id:
            self._known[name] = run_id
            replace_file(self._path, [json.dumps(self._known, indent=2).encode()])


class Tracking:
    """Feeds the trials of a sweep to MLflow; where that fails, the sweep goes on without it."""

    def __init__(self, tracker: Tracker, ids: Ids, describe: Describe) -> None:
        self._tracker, self._ids, self._describe = tracker, ids, describe
        self._seen: dict[str, tuple[str, int]] = {}  # the run and step told last, by trial
        self._broken = False
        ids.put("sweep", tracker.run_id)

    def told(self, name: str, run: Path, result: Mapping[str, Any], changed: Values) -> None:
        """A trial has reported.

        Args:
            run: directory of its run.
            changed: varied settings that have another value than when the trial began.
        """
        self._attempt(lambda: self._told(name, run, result, changed))

    def _told(self, name: str, run: Path, result: Mapping[str, Any], changed: Values) -> None:
        if name not in self._seen:
            made = self._describe(run)
            known = self._ids.get(name)
            self._ids.put(name, self._tracker.start_trial(name, made.parameters, made.tags, known))
        before = self._seen.get(name)
        self._seen[name] = (run.name, result[STEP])
        if before is not None and before[0] == run.name and before[1] >= result[STEP]:
            return  # told again after a loss
        metrics = {key: value for key, value in result.items() if _is_metric(key, value)}
        if before is not None and before[0] != run.name:
            self._tracker.mutated(name, result[STEP], changed)
        self._tracker.log_metrics(name, result[STEP], metrics)

    def over(self, name: str, run: Path, status: Status) -> None:
        """A trial is over."""
        self._attempt(lambda: self._over(name, run, status))

    def _over(self, name: str, run: Path, status: Status) -> None:
        if name in self._seen:
            for file in self._describe(run).files:
                self._tracker.artifact(name, file)
            self._tracker.end_trial(name, status)

    def best(self, name: str, model: nn.Module, example_input: Tensor, model_name: str) -> None:
        """Log the model of the best trial, and register it.

        Args:
            example_input: (B, *shape).
            model_name: of the registered model.
        """
        self._attempt(lambda: self._tracker.log_model(name, model, example_input))
        self._attempt(lambda: self._tracker.register(name, model_name, BEST))

    def end(self, status: Status, files: Sequence[Path] = ()) -> None:
        """The sweep is over.

        Args:
            files: of the sweep itself.
        """
        for path in files:
            self._attempt(lambda path=path: self._tracker.sweep_artifact(path))
        self._attempt(lambda: self._tracker.end(status))

    def _attempt(self, act: Callable[[], None]) -> None:
        """Try only until the first failure: with a dead server each attempt takes minutes."""
        if self._broken:
            return
        try:
            act()
        except Exception as error:  # of MLflow, a database driver, requests or the system
            self._broken = True
            _log.warning("MLflow failed (%s): the sweep goes on without it", reason(error))


def _is_metric(key: str, value: Any) -> bool:
    """Whether a part of a result is a trial's metric: Tune adds much of its own."""
    return "/" in key and isinstance(value, int | float) and not isinstance(value, bool)
