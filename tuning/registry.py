"""Models of MLflow: logged for a run, registered under a name and an alias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

ID = "blocklocal.id"
"""The tag by which a run, a model or a version is found again."""


def log_model(client: MlflowClient, run: Run, directory: Path, mark: str, step: int) -> str:
    """Make a model of a run of a directory that `tuning.models` wrote.

    Args:
        mark: identifies the model: one that has it is completed instead.
        step: of its weights.

    Returns:
        Its id.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    run_id, experiment = run.info.run_id, run.info.experiment_id
    found = client.search_logged_models([experiment], f"tags.`{ID}` = '{mark}'")
    if found:
        model = found[0]
    else:
        model = client.create_logged_model(experiment, "model", run_id, tags={ID: mark})
    page = Model.load(str(directory / MLMODEL_FILE_NAME))
    page.run_id, page.model_id, page.model_uuid = run_id, model.model_id, model.model_id
    page.artifact_path = model.artifact_location
    page.save(str(directory / MLMODEL_FILE_NAME))
    client.log_model_artifacts(model.model_id, str(directory))
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def register(client: MlflowClient, model_id: str, name: str, alias: str, mark: str) -> None:
    """Make a model the newest version of a registered one, and give it an alias.

    Args:
        mark: identifies the version: one that has it is given the alias instead.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.tags.get(ID) == mark), None)
    version = version or _new_version(client, model_id, name, mark)
    client.set_registered_model_alias(name, alias, version.version)


def _new_version(client: MlflowClient, model_id: str, name: str, mark: str) -> ModelVersion:
    model = client.get_logged_model(model_id)
    # A database would look for models:/ at the process's own tracking URI, which is another; a
    # server refuses the path.
    served = client.tracking_uri.startswith(("http://", "https://"))
    version = client.create_model_version(
        name,
        f"models:/{model_id}" if served else model.artifact_location,
        model.source_run_id,
        tags={ID: mark},
        model_id=model_id,
    )
    # The link that MLflow's own way of registering leaves at the model.
    known = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    new = [*known, {"name": version.name, "version": version.version}]
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(new)})
    return version
