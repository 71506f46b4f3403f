"""What MLflow is told, record by record, through one client.

Records are dictionaries with these keys besides `do` and the `run` that they are about:

    start      parameters, tags, name, parent, started, known, id
    metrics    step, at, values
    artifact   path, directory
    model      path, name, step, id
    register   name, alias, id
    end        status, at

All can be told twice without harm, for what was told and not acknowledged is told again: metrics
are the same rows, and what MLflow would make a second one of carries an `id` by which it is found.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.spool import Position, Record
from tuning.tracking import open_database, place, redacted, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tuning.tracking import TrackingSettings

# Limits of MLflow: entities a call and characters a value.
METRICS_A_CALL, PARAMETERS_A_CALL = 1000, 100
PARAMETER_LENGTH, TAG_LENGTH = 6000, 8000
ID = "blocklocal.id"
"""The tag by which a run, a model or a version is found again."""

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
        self._client = connect(self.uri)
        location = artifact_location(self.uri, default_directory)
        self._experiment = _experiment(self._client, settings.experiment, location)

    def check(self, run_id: str) -> None:
        """Raise what MLflow says where it has no such run."""
        self._client.get_run(run_id)

    def deliver(
        self,
        records: Sequence[tuple[Record, Position]],
        acknowledge: Callable[[Position, int], None],
        refuse: Callable[[Record, str], None],
        base: Path,
    ) -> None:
        """Tell MLflow all records, metrics in batches.

        Args:
            acknowledge: called with a position up to which all is told, and how many records since
                the last time.
            refuse: called with a record that MLflow will never take, and its reason.
            base: of relative paths.
        """
        metrics: dict[str, list[Record]] = {}
        told = 0
        for record, position in records:
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
            acknowledge(position, told)
            told = 0
        self._send_metrics(metrics, refuse)
        if told:
            acknowledge(records[-1][1], told)

    def _send_metrics(
        self, waiting: dict[str, list[Record]], refuse: Callable[[Record, str], None]
    ) -> None:
        from mlflow.entities import Metric

        for run in list(waiting):
            batch: list[Metric] = []
            for record in waiting[run]:
                values = record["values"].items()
                batch += [Metric(n, v, record["at"], record["step"]) for n, v in values]
            try:
                with _final():
                    for at in range(0, len(batch), METRICS_A_CALL):
                        part = batch[at : at + METRICS_A_CALL]
                        self._client.log_batch(self.run_id(run), metrics=part, synchronous=True)
            except RefusedError as error:
                for record in waiting[run]:
                    refuse(record, str(error))
            del waiting[run]  # only after a success

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
                path = str(base / record["path"])
                if not os.path.exists(path):
                    raise RefusedError(f"{path} is gone")
                self._client.log_artifact(self.run_id(record["run"]), path, record["directory"])
            case "model":
                self._log_model(record, base / record["path"])
            case "register":
                self._register(record)
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
        """Make a model of MLflow of a directory that `tuning.models` wrote."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model
        from mlflow.models.model import MLMODEL_FILE_NAME

        run_id, mark = self.run_id(record["run"]), record["id"]
        if not (directory / MLMODEL_FILE_NAME).exists():
            raise RefusedError(f"{directory} is gone")
        found = self._client.search_logged_models([self._experiment], f"tags.`{ID}` = '{mark}'")
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                self._experiment, record["name"], run_id, tags={ID: mark}
            )
        )
        page = Model.load(str(directory / MLMODEL_FILE_NAME))
        page.run_id, page.model_id, page.model_uuid = run_id, model.model_id, model.model_id
        page.artifact_path = model.artifact_location
        page.save(str(directory / MLMODEL_FILE_NAME))
        self._client.log_model_artifacts(model.model_id, str(directory))
        if str(model.status) != "READY":
            output = LoggedModelOutput(model.model_id, record["step"])
            self._client.log_outputs(run_id, [output])
            self._client.finalize_logged_model(model.model_id, "READY")
        self._names[f"model {record['run']}"] = model.model_id

    def _register(self, record: Record) -> None:
        """Make a version of a registered model of a run's model, and give it an alias."""
        from mlflow.exceptions import MlflowException

        name, model_id = record["name"], self._names.get(f"model {record['run']}")
        if model_id is None:
            raise RefusedError(f"run {record['run']!r} has no model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}'")
        version = next((v for v in versions if v.tags.get(ID) == record["id"]), None)
        if version is None:
            version = self._new_version(record, model_id)
        self._client.set_registered_model_alias(name, record["alias"], version.version)

    def _new_version(self, record: Record, model_id: str) -> ModelVersion:
        model = self._client.get_logged_model(model_id)
        # A database would look for models:/ at the process's own tracking URI, which is another; a
        # server refuses the path.
        local = not self.uri.startswith(("http://", "https://"))
        version = self._client.create_model_version(
            record["name"],
            model.artifact_location if local else f"models:/{model_id}",
            self.run_id(record["run"]),
            tags={ID: record["id"]},
            model_id=model_id,
        )
        # The link that MLflow's own way of registering leaves at the model.
        known = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
        new = [*known, {"name": version.name, "version": version.version}]
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(new)})
        return version


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


def connect(uri: str) -> MlflowClient:
    """Import MLflow, silenced, and open a client at `uri`."""
    # Read by the import: MLflow would send usage data home, and print the address of a run.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    # They report each of the dozens of migrations that make a new database.
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    open_database(uri)
    # A registry of its own would be asked for what was logged here.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def artifact_location(uri: str, default_directory: Path) -> str | None:
    """Choose where the files of a new experiment go; None leaves it to the tracking server.

    For a database MLflow would take ./mlruns, which depends on where the run was started.
    """
    if (file := sqlite_file(uri)) is not None:
        return (file.absolute().parent / "mlartifacts").as_uri()
    if re.match(r"(postgresql|mysql|mssql|sqlite)\b", uri):
        return (default_directory.absolute() / "mlartifacts").as_uri()
    return None


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name, location)
        except MlflowException:  # perhaps another run was faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    return experiment.experiment_id
