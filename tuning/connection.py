"""Connecting to an MLflow: the import, the client, the experiment."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.tracking import open_database, sqlite_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


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


def experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """Find an experiment by its name, or make it with its files at `location`."""
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name, location)
        except MlflowException:  # perhaps another run was faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    return experiment.experiment_id
