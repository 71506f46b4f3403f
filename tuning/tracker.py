"""Tracking one run with MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from learning.errors import UserError
from tuning.courier import Courier, left_behind
from tuning.ledger import Ledger, start_record
from tuning.sending import open_courier
from tuning.tracking import Status, TrackingSettings, place, redacted

_log = logging.getLogger(__name__)
RUN = "run"
"""The key of the only run of a queue."""


class Tracker:
    """Writes one MLflow run; for the one process of a run that tracks.

    Every method appends to a queue in the run directory and returns; a thread sends. Disabled by
    its settings, it does nothing and does not import MLflow.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        default_directory: Path,
        queue: Path,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        """Open the queue; MLflow is not asked before `begin` or `wait`.

        Args:
            settings: where to track.
            default_directory: holds mlflow.db and mlartifacts when no URI is set; made if missing.
            queue: directory of the queue; made if missing.
            parameters: dotted name -> value, written as text and cut at 6000 characters.
            tags: name -> value, cut at 8000 characters.
            run_id: MLflow run to go on with; None starts one.

        Raises:
            UserError: when the queue cannot be used.
        """
        self._settings = settings
        self._courier: Courier | None = None
        if not settings.enabled:
            return
        self._uri = place(settings, default_directory)
        start = start_record(RUN, settings.run_name, parameters, tags, known=run_id)
        self._courier = open_courier(settings, default_directory, queue, start)
        self._ledger = Ledger(self._courier)

    @property
    def run_id(self) -> str | None:
        """Identifies the MLflow run; None while that is not reached, and when disabled."""
        if self._courier is None or not self._courier.reached:
            return None
        return self._courier.spool.names[f"run {RUN}"]

    @property
    def uri(self) -> str | None:
        """The tracking URI in use; None likewise."""
        store = self._courier.store if self._courier else None
        return store.uri if store else None

    def begin(self) -> None:
        """Start to connect, in the thread."""
        if self._courier is not None:
            self._courier.begin()

    def wait(self) -> None:
        """Wait until MLflow is reached.

        Raises:
            UserError: when the URI cannot be used or has no such run.
        """
        if self._courier is not None:
            self._courier.wait()

    def log_metrics(
        self, step: int, metrics: Mapping[str, float], measured: int | None = None
    ) -> None:
        """Log metrics.

        Steps done again by a resumed run appear twice in the history, told apart by their times.

        Args:
            step: training step.
            metrics: name such as "block1/loss" -> value.
            measured: Unix time in milliseconds; None is now.

        Raises:
            UserError: as `wait`, if that is known by now.
        """
        if self._courier is not None:
            self._ledger.metrics(RUN, step, metrics, measured)

    def log_artifact(self, path: str | Path, directory: str | None = None) -> None:
        """Log a file, or a directory under its name, into a directory of the run's artifacts."""
        if self._courier is not None:
            self._ledger.artifact(RUN, Path(path), directory)

    @property
    def has_model(self) -> bool:
        """Whether the run has a model in MLflow, or one that waits."""
        if self._courier is None:
            return False
        spool = self._courier.spool
        return f"model {RUN}" in spool.names or (spool.path / "models").exists()

    def log_model(self, model: nn.Module, example_input: Tensor, step: int = 0) -> None:
        """Log a model with its signature; one that cannot be exported is left out, with a warning.

        Args:
            example_input: (B, *shape).
            step: of its weights.
        """
        if self._courier is not None:
            try:
                self._ledger.model(RUN, model, example_input, step)
            except UserError as error:
                _log.warning("%s", error)

    def end(self, status: Status = "FINISHED") -> int:
        """Close the run with a status, and send what waits as long as patience lasts.

        Returns:
            How many records still wait in the queue.
        """
        if self._courier is None:
            return 0
        if not self._courier.refused:
            self._ledger.end(RUN, status)
        return self._courier.close(self._settings.patience)

    def left_behind(self, records: int) -> str:
        """What to say about records that wait on after the end."""
        assert self._courier is not None
        return left_behind(records, redacted(self._uri), self._courier.spool.path)
