"""What MLflow is told, record by record, through one client.

Records are dictionaries with these keys besides `do` and the `run` that they are about:

    start      parameters, tags, name, parent, started, known, id
    metrics    step, at, values
    artifact   path, directory
    model      path, step, id
    register   name, alias, id
    end        status, at

All can be told twice without harm, for what was told and not acknowledged is told again: metrics
are the same rows, and what MLflow would make a second one of carries an `id` by which it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.connection import artifact_location, connect, experiment_id
from tuning.registry import ID, log_model, register
from tuning.spool import Position, Record
from tuning.tracking import place, redacted
from tuning.waiting_files import ForeignError, waiting_file

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tuning.tracking import TrackingSettings

# Limits of MLflow: entities a call and characters a value.
METRICS_A_CALL, PARAMETERS_A_CALL = 1000, 100
PARAMETER_LENGTH, TAG_LENGTH = 6000, 8000

FILES = ("artifact", "model", "register")
"""Records that need the place where MLflow keeps files."""
LATER = "later"
"""The key of a record that has let others go first."""
_FINAL = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class RefusedError(Exception):
    """MLflow will never take a record."""


class Store:
    """An MLflow, and what the records of one queue are called there.

    Attributes:
        uri: the tracking URI in use.
    """

    def __init__(
        self, settings: TrackingSettings, default_directory: Path, names: dict[str, str]
    ) -> None:
        """Import MLflow and connect; whatever is wrong is raised as it is.

        Args:
            default_directory: holds mlflow.db and mlartifacts when no URI is set; made if missing.
            names: of runs and models, by `run <key>` and `model <key>`; filled as they are made.
        """
        self.uri = place(settings, default_directory)
        self._names = names
        self._deferred: set[str] = set()  # runs of which a file waits
        self._client = connect(self.uri)
        location = artifact_location(self.uri, default_directory)
        self._experiment = experiment_id(self._client, settings.experiment, location)

    def check(self, run_id: str) -> None:
        """Raise what MLflow says where it has no such run."""
        self._client.get_run(run_id)

    def deliver(
        self,
        records: Sequence[tuple[Record, Position]],
        acknowledge: Callable[[Position, int], None],
        refuse: Callable[[Record, str], None],
        defer: Callable[[Record], None],
        base: Path,
    ) -> None:
        """Tell MLflow all records, metrics in batches.

        Files are often kept elsewhere than the rest. Where only that place fails, what goes there
        lets the records behind it go first.

        Args:
            acknowledge: called with a position up to which all is told, and how many records since
                the last time.
            refuse: called with a record that MLflow will never take, and its reason.
            defer: called with a record that is to come after all others.
            base: the directory of the files that records name.
        """
        metrics: dict[str, list[Record]] = {}
        told = 0
        for at, (record, position) in enumerate(records, start=1):
            told += 1
            if record["do"] == "metrics":
                metrics.setdefault(record["run"], []).append(record)
                continue
            self._send_metrics(metrics, refuse)
            try:
                with _final():
                    self._tell(record, base)
            except RefusedError as error:
                refuse(record, str(error))
            except Exception:  # of MLflow, or of whoever keeps its files
                others = any(LATER not in behind for behind, _ in records[at:])
                if record["do"] not in FILES or not others or not self._answers(record["run"]):
                    raise
                self._deferred.add(record["run"])
                defer({**record, LATER: True})
            acknowledge(position, told)
            told = 0
        self._send_metrics(metrics, refuse)
        if told:
            acknowledge(records[-1][1], told)

    def _answers(self, run: str) -> bool:
        """Whether MLflow itself does."""
        try:
            self._client.get_run(self.run_id(run))
        except Exception:  # it fails as a whole, which the next attempt will tell
            return False
        return True

    def _send_metrics(
        self, waiting: dict[str, list[Record]], refuse: Callable[[Record, str], None]
    ) -> None:
        for run in list(waiting):
            try:
                self._log_batch(run, waiting[run])
            except RefusedError:  # of one perhaps; the others are taken
                for record in waiting[run]:
                    try:
                        self._log_batch(run, [record])
                    except RefusedError as error:
                        refuse(record, str(error))
            del waiting[run]  # only after a success

    def _log_batch(self, run: str, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for record in records:
            values = record["values"].items()
            batch += [Metric(n, v, record["at"], record["step"]) for n, v in values]
        with _final():
            for at in range(0, len(batch), METRICS_A_CALL):
                part = batch[at : at + METRICS_A_CALL]
                self._client.log_batch(self.run_id(run), metrics=part, synchronous=True)

    def run_id(self, key: str) -> str:
        """How MLflow calls a run of the queue.

        Raises:
            RefusedError: when it was never started.
        """
        if (found := self._names.get(f"run {key}")) is None:
            raise RefusedError(f"run {key!r} was not started")
        return found

    def _tell(self, record: Record, base: Path) -> None:
        match record["do"]:
            case "start":
                self.start(record)
            case "artifact":
                path = _file(base, record)
                run = self.run_id(record["run"])
                self._client.log_artifact(run, str(path), record["directory"])
            case "model":
                self._log_model(record, _file(base, record))
            case "register":
                if (model := self._names.get(f"model {record['run']}")) is None:
                    if record["run"] in self._deferred:
                        raise ConnectionError(f"the model of run {record['run']!r} still waits")
                    raise RefusedError(f"run {record['run']!r} has no model")
                register(self._client, model, record["name"], record["alias"], record["id"])
            case "end":
                run_id = self.run_id(record["run"])
                self._client.set_terminated(run_id, record["status"], record["at"])
            case other:
                raise RefusedError(f"nobody knows how to {other}")

    def start(self, record: Record) -> None:
        """Start a run, or go on with the one that it is."""
        name = f"run {record['run']}"
        run_id = self._names.get(name) or record["known"]
        if run_id is None:
            run = self._found(record["id"]) or self._create(record)
        else:
            run = self._client.get_run(run_id)
            self._client.update_run(run_id, status="RUNNING")
        self._describe(run, record["parameters"], record["tags"])
        self._names[name] = run.info.run_id

    def _found(self, mark: str) -> Run | None:
        """The run that was made when the answer was lost."""
        runs = self._client.search_runs([self._experiment], f"tags.`{ID}` = '{mark}'")
        return runs[0] if runs else None

    def _create(self, record: Record) -> Run:
        tags = {ID: record["id"]}
        if record["parent"] is not None:
            tags["mlflow.parentRunId"] = self.run_id(record["parent"])
        return self._client.create_run(
            self._experiment, start_time=record["started"], tags=tags, run_name=record["name"]
        )

    def _describe(self, run: Run, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write parameters and tags.

        A parameter that has changed keeps its first value, as MLflow demands, and the new one
        becomes the tag `resumed.<parameter>`.
        """
        from mlflow.entities import Param, RunTag

        known: dict[str, str] = run.data.params
        texts = {name: text[:PARAMETER_LENGTH] for name, text in parameters.items()}
        changed = {
            f"resumed.{name}": text for name, text in texts.items() if known.get(name, text) != text
        }
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        marks = [RunTag(name, text[:TAG_LENGTH]) for name, text in {**changed, **tags}.items()]
        for at in range(0, max(len(new), len(marks)), PARAMETERS_A_CALL):
            part = slice(at, at + PARAMETERS_A_CALL)
            self._client.log_batch(
                run.info.run_id, params=new[part], tags=marks[part], synchronous=True
            )

    def _log_model(self, record: Record, directory: Path) -> None:
        run = self._client.get_run(self.run_id(record["run"]))
        model = log_model(self._client, run, directory, record["id"], record["step"])
        self._names[f"model {record['run']}"] = model


def _file(base: Path, record: Record) -> Path:
    try:
        return waiting_file(base, record["path"])
    except ForeignError as error:
        raise RefusedError(str(error)) from error


@contextmanager
def _final() -> Iterator[None]:
    """Tell apart what MLflow will never take from what it cannot take at the moment."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in _FINAL:
            raise RefusedError(redacted(str(error).splitlines()[0])) from error
        raise
