"""The command `track`: what waits in a directory is sent to MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from learning.errors import UserError, named
from orchestrator.rundir import RunDirectory
from tuning.sending import send_waiting
from tuning.tracker import RUN
from tuning.waiting_files import QUEUE, base_of


def send(directory: Path, uri: str | None) -> tuple[int, Path | None]:
    """Send what waits in the directory of a run or of a sweep, or in a queue's own.

    Args:
        uri: tracking URI instead of the one that it was written for.

    Returns:
        How many records were sent, and the file of those that MLflow refused, if there are any.

    Raises:
        UserError: when there is no such directory, it is in use, or MLflow cannot be reached.
    """
    is_queue = (directory / "sent.json").exists()
    queue = Path(os.path.abspath(directory if is_queue else directory / QUEUE))
    # What lies beside a stranger's queue is not the queue's.
    if is_queue and queue != base_of(queue) and not _is_of_a_run(base_of(queue)):
        raise UserError(
            f"{named(queue)} is not in the directory of its run or sweep, where its files are: "
            "bring it back there"
        )
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


def _is_of_a_run(directory: Path) -> bool:
    """Whether it is that of a run, or of a sweep."""
    return any((directory / name).exists() for name in ("config.yaml", "sweep.yaml"))
