"""Tracking a sweep with MLflow: a parent run, and below it one run a trial."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tuning.courier import Courier, left_behind
from tuning.ledger import Ledger, start_record
from tuning.sending import open_courier
from tuning.tracking import Status, TrackingSettings, redacted

_log = logging.getLogger(__name__)
PARENT = "sweep"
NAME_SECONDS = 5.0
"""So long `start_trial` waits at most for MLflow to say how it calls a run, unless told."""


class SweepTracker:
    """Writes the MLflow runs of a sweep; for the one process that runs it.

    Every method appends to a queue on disk and returns; one thread sends, in batches over all
    trials. Trials are named by the sweep's own names. Disabled by its settings, it does nothing.

    Attributes:
        run_id: the parent run; None when disabled.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        default_directory: Path,
        name: str,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
        *,
        queue: Path | None = None,
    ) -> None:
        """Connect, and start the parent run or go on with it.

        Args:
            settings: where to track.
            default_directory: holds mlflow.db and mlartifacts when no URI is set; made if missing.
            name: of the parent run.
            parameters: of the sweep, by dotted key.
            tags: of the parent run.
            run_id: parent run to go on with; None starts one, or goes on with that of the queue.
            queue: directory of what waits for MLflow, of this sweep alone, best `tracking` in that
                of the sweep; None: `<name>.tracking` in `default_directory`.

        Raises:
            UserError: when the URI or the queue cannot be used, or there is no such run.
        """
        self._settings = settings
        self.run_id: str | None = None
        self._courier: Courier | None = None
        if not settings.enabled:
            return
        self._queue = queue or default_directory / f"{name}.tracking"
        start = start_record(PARENT, name, parameters, tags, known=run_id)
        self._courier = open_courier(settings, default_directory, self._queue, start)
        self._ledger = Ledger(self._courier)
        try:
            self._courier.wait()
        except BaseException:
            self._courier.close(0.0)
            raise
        self.run_id = self._courier.spool.names[f"run {PARENT}"]

    def start_trial(
        self,
        name: str,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
        *,
        wait: float = NAME_SECONDS,
    ) -> str:
        """Start the run of a trial, or go on with it.

        Args:
            name: of the trial, unlike that of any other trial of the sweep.
            parameters: by dotted key.
            run_id: what this method returned when the sweep was interrupted; not needed where the
                queue is that of then.
            wait: at most so many seconds for MLflow's answer.

        Returns:
            How MLflow calls the run. Where that is not known yet, `waiting:<name>`, which this
            method takes as well.
        """
        if self._courier is None:
            return ""
        stand_in = f"waiting:{name}"
        known = None if run_id == stand_in else run_id
        record = start_record(_key(name), name, parameters, tags, parent=PARENT, known=known)
        self._courier.put(record, urgent=True)
        return self._courier.name(f"run {_key(name)}", wait) or stand_in

    def log_metrics(self, trial_name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a trial: name such as "validation/block3/accuracy" -> value."""
        if self._courier is not None:
            self._ledger.metrics(_key(trial_name), step, metrics)

    def mutated(self, trial_name: str, step: int, parameters: Mapping[str, object]) -> None:
        """Log that a trial goes on with other hyperparameters.

        MLflow's parameters cannot change, so that each becomes a metric `mutation/<dotted key>`;
        one that is not a number is left out.
        """
        values = {
            f"mutation/{key}": float(value)
            for key, value in parameters.items()
            if isinstance(value, numbers.Real)
        }
        if values:
            self.log_metrics(trial_name, step, values)

    def artifact(self, trial_name: str, path: str | Path, directory: str | None = None) -> None:
        """Log a file, or a directory under its name; one beside the queue is not copied."""
        if self._courier is not None:
            self._ledger.artifact(_key(trial_name), Path(path), directory)

    def sweep_artifact(self, path: str | Path, directory: str | None = None) -> None:
        """Log a file or a directory of the sweep itself, into the parent run."""
        if self._courier is not None:
            self._ledger.artifact(PARENT, Path(path), directory)

    def log_model(self, trial_name: str, model: nn.Module, example_input: Tensor) -> None:
        """Log a model with its signature.

        Args:
            example_input: (B, *shape).

        Raises:
            UserError: when the network cannot be exported.
        """
        if self._courier is not None:
            self._ledger.model(_key(trial_name), model, example_input)

    def register(self, trial_name: str, model_name: str, alias: str) -> None:
        """Make the model of a trial the newest version of a registered model, with an alias."""
        if self._courier is not None:
            self._ledger.register(_key(trial_name), model_name, alias)

    def end_trial(self, trial_name: str, status: Status) -> None:
        """Close the run of a trial."""
        if self._courier is not None:
            self._ledger.end(_key(trial_name), status)

    def end(self, status: Status) -> None:
        """Close the parent run and send what waits, as long as patience lasts; say what is left."""
        if self._courier is None:
            return
        if not self._courier.refused:
            self._ledger.end(PARENT, status)
        left = self._courier.close(self._settings.patience)
        if left:
            store = self._courier.store
            assert store is not None
            _log.warning(left_behind(left, redacted(store.uri), self._queue))


def _key(trial: str) -> str:
    return f"trial {trial}"
