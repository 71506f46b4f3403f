"""The command `track`: what waits in a directory is sent to MLflow."""

from __future__ import annotations

from pathlib import Path

from blocklocal.training import QUEUE
from learning.errors import UserError
from orchestrator.rundir import RunDirectory
from tuning.sending import send_waiting
from tuning.tracker import RUN


def send(directory: Path, uri: str | None) -> tuple[int, Path | None]:
    """Send what waits in the directory of a run or of a sweep, or in a queue's own.

    Args:
        uri: tracking URI instead of the one that it was written for.

    Returns:
        How many records were sent, and the file of those that MLflow refused, if there are any.

    Raises:
        UserError: when there is no such directory, it is in use, or MLflow cannot be reached.
    """
    queue = directory if (directory / "sent.json").exists() else directory / QUEUE
    if (directory / "state.json").exists() and (directory / "config.yaml").exists():
        run = RunDirectory.open(directory)
        with run.lock():
            sent, names = send_waiting(queue, uri)
            if (run_id := names.get(f"run {RUN}")) not in (None, run.state.mlflow_run_id):
                run.update_state(mlflow_run_id=run_id)
    elif queue.is_dir():
        sent, _ = send_waiting(queue, uri)
    else:
        raise UserError(f"{directory} holds no run and no sweep: choose the directory of one")
    refused = queue / "refused.jsonl"
    return sent, refused if refused.exists() else None
