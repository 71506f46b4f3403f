"""Tracking a run with MLflow: parameters, metrics and files, written by one process in batches."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from pydantic import Field

from learning.errors import UserError
from learning.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

BUFFERED_METRICS, BUFFERED_SECONDS = 500, 5.0
"""A buffer with so many metrics, or one last sent so long ago, is sent at the next metric."""

# Limits of MLflow: entities a call and characters a value.
_METRICS_A_CALL, _PARAMETERS_A_CALL = 1000, 100
_PARAMETER_LENGTH, _TAG_LENGTH = 6000, 8000
KNOCK_SECONDS = 20.0  # for a server to answer

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingSettings(Settings):
    """Where a run is tracked."""

    enabled: bool = True
    uri: str | None = Field(
        default=None,
        description="MLflow tracking URI; default MLFLOW_TRACKING_URI, else a SQLite file",
    )
    experiment: str = Field(default="blocklocal", min_length=1, max_length=500)
    run_name: str | None = Field(default=None, description="default: a name MLflow makes up")


def check_place(settings: TrackingSettings, default_directory: Path) -> None:
    """Refuse what can be told without MLflow, whose import takes longer than a first step.

    Raises:
        UserError: when a server does not answer or a SQLite file cannot be opened.
    """
    if not settings.enabled:
        return
    uri = _place(settings, default_directory)
    with _connecting(uri, None):
        _open_database(uri)
        if uri.startswith(("http://", "https://")) and not getproxies():
            server = urlsplit(uri)
            port = server.port or (443 if server.scheme == "https" else 80)
            socket.create_connection((server.hostname or "", port), KNOCK_SECONDS).close()


class Tracker:
    """Writes one MLflow run; for the one process of a run that tracks.

    Metrics wait in a buffer, sent when it is full or old at the time of a new metric, and by
    `flush` and `end`: nothing is sent in the background. A failure to send is raised and keeps what
    was not sent. Disabled by its settings, it does nothing and does not import MLflow.

    Attributes:
        uri: the tracking URI in use; None when disabled.
        run_id: identifies the MLflow run; None when disabled.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        default_directory: Path,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        """Connect and start a run, or go on with one.

        A parameter which has changed since the run was started keeps its first value, as MLflow
        demands, and the new value becomes the tag `resumed.<parameter>`.

        Args:
            settings: where to track.
            default_directory: holds mlflow.db and mlartifacts when no URI is set; made if missing.
            parameters: dotted name -> value, written as text and cut at 6000 characters.
            tags: name -> value, cut at 8000 characters.
            run_id: MLflow run to go on with; None starts one.

        Raises:
            UserError: when the URI cannot be used or has no such run.
        """
        self.uri: str | None = None
        self.run_id: str | None = None
        self._client: MlflowClient | None = None
        self._buffer: list[Metric] = []
        self._sent = time.monotonic()
        if not settings.enabled:
            return
        self.uri = _place(settings, default_directory)
        with _connecting(self.uri, run_id):
            self._client = _connect(self.uri)
            if run_id is None:
                place = _artifact_location(self.uri, default_directory)
                experiment = _experiment(self._client, settings.experiment, place)
                run = self._client.create_run(experiment, run_name=settings.run_name)
            else:
                run = self._client.get_run(run_id)
                self._client.update_run(run_id, status="RUNNING")
            self.run_id = run.info.run_id
            self._describe(run, parameters, tags)

    def _describe(
        self, run: Run, parameters: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        assert self._client is not None
        known: dict[str, str] = run.data.params
        texts = {name: str(value)[:_PARAMETER_LENGTH] for name, value in parameters.items()}
        changed = {
            f"resumed.{name}": text for name, text in texts.items() if known.get(name, text) != text
        }
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        marks = {**changed, **tags}
        all_tags = [RunTag(name, str(text)[:_TAG_LENGTH]) for name, text in marks.items()]
        for at in range(0, max(len(new), len(all_tags)), _PARAMETERS_A_CALL):
            part = slice(at, at + _PARAMETERS_A_CALL)
            self._client.log_batch(
                run.info.run_id, params=new[part], tags=all_tags[part], synchronous=True
            )

    def log_metrics(
        self, step: int, metrics: Mapping[str, float], measured: int | None = None
    ) -> None:
        """Put metrics into the buffer and send it if it is full or old.

        Steps done again by a resumed run appear twice in the history, told apart by their times.

        Args:
            step: training step.
            metrics: name such as "block1/loss" -> value.
            measured: Unix time in milliseconds; None is now.
        """
        if self._client is None:
            return
        from mlflow.entities import Metric

        at = time.time_ns() // 1_000_000 if measured is None else measured
        self._buffer += [Metric(name, float(value), at, step) for name, value in metrics.items()]
        old = time.monotonic() - self._sent >= BUFFERED_SECONDS
        if len(self._buffer) >= BUFFERED_METRICS or old:
            self.flush()

    @property
    def waiting(self) -> int:
        """How many metrics are in the buffer."""
        return len(self._buffer)

    def flush(self) -> None:
        """Send what is in the buffer."""
        if self._client is None or self.run_id is None:
            return
        while self._buffer:
            batch = self._buffer[:_METRICS_A_CALL]
            self._client.log_batch(self.run_id, metrics=batch, synchronous=True)
            del self._buffer[: len(batch)]  # only after a success
        self._sent = time.monotonic()

    def log_artifact(self, path: str | Path, directory: str | None = None) -> None:
        """Copy a file, or a directory under its name, into a directory of the run's artifacts."""
        if self._client is not None and self.run_id is not None:
            self._client.log_artifact(self.run_id, str(path), directory)

    def end(self, status: Status = "FINISHED") -> None:
        """Send what is left and close the run with a status."""
        if self._client is None or self.run_id is None:
            return
        try:
            self.flush()
        finally:  # a run whose last metrics were refused must not look as if it still ran
            self._client.set_terminated(self.run_id, status)


def _connect(uri: str) -> MlflowClient:
    """Import MLflow, silenced, and open a client at `uri`."""
    # Read by the import: MLflow would send usage data home, and print the address of a run.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    # They report each of the dozens of migrations that make a new database.
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _open_database(uri)
    return MlflowClient(tracking_uri=uri)


def _place(settings: TrackingSettings, default_directory: Path) -> str:
    given = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    # Not more escapes: MLflow creates the parent directory by its escaped name.
    home = str(default_directory.absolute()).replace("%", "%25").replace("?", "%3F")
    return given or f"sqlite:///{home}/mlflow.db"


def _open_database(uri: str) -> None:
    """Open a SQLite file, where it is one; MLflow would try for minutes, and this fails at once."""
    if (file := _sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA schema_version")


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLAlchemy address, read without SQLAlchemy."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    name = unquote(found.group(1)) if found else ""
    return Path(name) if name and name != ":memory:" else None


def _artifact_location(uri: str, default_directory: Path) -> str | None:
    """Choose where the files of a new experiment go; None leaves it to the tracking server.

    For a database MLflow would take ./mlruns, which depends on where the run was started.
    """
    if (file := _sqlite_file(uri)) is not None:
        return (file.absolute().parent / "mlartifacts").as_uri()
    if re.match(r"(postgresql|mysql|mssql|sqlite)\b", uri):
        return (default_directory.absolute() / "mlartifacts").as_uri()
    return None


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name, artifact_location)
        except MlflowException:  # perhaps another run was faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    return experiment.experiment_id


@contextmanager
def _connecting(uri: str, run_id: str | None) -> Iterator[None]:
    """Turn failures into one sentence, and soon: MLflow would ask a dead server for minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    patience = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(patience)
    try:
        yield
    except Exception as error:  # of sqlite3, SQLAlchemy, a database driver, requests or MLflow
        place = f"where run {run_id} was started" if run_id else "sqlite:///<file> or a server"
        raise UserError(
            f"cannot track with MLflow at {_redacted(uri)} ({reason(error)}): "
            f"set tracking.uri to {place}, or set tracking.enabled to false"
        ) from error
    finally:
        for name in patience:
            del os.environ[name]


def reason(error: Exception) -> str:
    """What went wrong, in one line without passwords."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    # What the system said, such as "connection refused", is the end of a long chain.
    said = root if isinstance(root, OSError) else error
    lines = str(said).strip().splitlines() or [type(said).__name__]
    return _redacted(shorten(lines[0].rstrip("."), 240, placeholder=" ..."))


def _redacted(text: str) -> str:
    """Hide passwords in addresses."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)
