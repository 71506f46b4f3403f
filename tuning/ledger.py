"""What is written about the runs of one queue: each method is one record."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orchestrator.record_files import writing
from tuning.courier import Courier, relative
from tuning.models import save_model
from tuning.tracking import Status
from tuning.waiting_files import base_of


def start_record(
    key: str,
    name: str | None,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    *,
    parent: str | None = None,
    known: str | None = None,
) -> dict[str, Any]:
    """The record that starts a run, or goes on with it.

    Args:
        key: names the run in the queue.
        parent: key of the run that it is a part of.
        known: how MLflow calls it, if it is there already.
    """
    return {
        "do": "start",
        "run": key,
        "parent": parent,
        "name": name,
        "parameters": {n: str(value) for n, value in parameters.items()},
        "tags": {n: str(value) for n, value in tags.items()},
        "started": _now(),
        "known": known,
        "id": uuid.uuid4().hex,
    }


class Ledger:
    """Writes records for a courier; runs are named by their keys."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._spool = courier.spool

    def metrics(
        self, run: str, step: int, values: Mapping[str, float], measured: int | None = None
    ) -> None:
        """Log metrics of a step.

        Args:
            measured: Unix time in milliseconds; None is now.
        """
        at = _now() if measured is None else measured
        flat = {name: float(value) for name, value in values.items()}
        self._courier.put({"do": "metrics", "run": run, "step": step, "at": at, "values": flat})

    def artifact(self, run: str, path: Path, directory: str | None) -> None:
        """Log a file, or a directory under its name.

        One of the directory of the run or the sweep is read when it is sent; any other is copied,
        for it may be gone then.

        Raises:
            RecordError: when it cannot be copied.
        """
        base = base_of(self._spool.path).absolute()
        if not path.absolute().is_relative_to(base):
            copy = self._new("files") / path.name
            with writing(copy):
                copy.parent.mkdir(parents=True)
                shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
            path = copy
        record = {"do": "artifact", "run": run, "path": relative(path, base)}
        self._courier.put({**record, "directory": directory})

    def model(self, run: str, model: nn.Module, example_input: Tensor, step: int = 0) -> None:
        """Log a model with its signature.

        Args:
            example_input: (B, *shape).

        Raises:
            UserError: when the network cannot be exported, or not be written.
        """
        directory = self._new("models")
        try:
            with writing(directory):
                directory.parent.mkdir(exist_ok=True)
                save_model(model, example_input, directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        path = relative(directory, base_of(self._spool.path))
        record = {"do": "model", "run": run, "path": path, "step": step}
        self._courier.put({**record, "id": directory.name})

    def register(self, run: str, name: str, alias: str) -> None:
        """Make the run's model the newest version of a registered one, under an alias."""
        record = {"do": "register", "run": run, "name": name, "alias": alias}
        self._courier.put({**record, "id": uuid.uuid4().hex})

    def end(self, run: str, status: Status) -> None:
        """Say how a run ended."""
        self._courier.put({"do": "end", "run": run, "status": status, "at": _now()})

    def _new(self, kind: str) -> Path:
        return self._spool.path / kind / uuid.uuid4().hex


def _now() -> int:
    return time.time_ns() // 1_000_000
