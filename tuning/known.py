"""What MLflow was told of a sweep, kept on disk: a resumed sweep goes on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from orchestrator.lines import append_line, damaged, read_lines
from orchestrator.record_files import read_json, replace_record

IDS, TOLD = "tracking.json", "told.jsonl"
"""In a sweep's directory: how MLflow calls its run, and how far each trial was told."""


class Known:
    """What was told, by trial.

    Args:
        directory: of the sweep.
    """

    def __init__(self, directory: Path) -> None:
        self._ids, self._told = directory / IDS, directory / TOLD
        self.run_id: str | None = None
        if os.path.lexists(self._ids):
            self.run_id = read_json(self._ids, _run_id, "delete it, and MLflow gets a new run")
        self._last: dict[str, tuple[str, int]] = {}
        if os.path.lexists(self._told):
            for number, (_, record) in enumerate(read_lines(self._told), start=1):
                if not all(isinstance(record.get(name), str) for name in ("trial", "run")):
                    raise damaged(self._told, number, ValueError("no trial and run"))
                self._last[record["trial"]] = record["run"], record.get("step", 0)

    def sweep(self, run_id: str | None) -> None:
        """Keep how MLflow calls the run of the sweep."""
        if run_id is not None and run_id != self.run_id:
            self.run_id = run_id
            replace_record(self._ids, [json.dumps({"sweep": run_id}).encode()])

    def last(self, trial: str) -> tuple[str, int] | None:
        """The run and the step that were told last; None where nothing was."""
        return self._last.get(trial)

    def told(self, trial: str, run: str, step: int) -> None:
        """Keep that a trial's metrics up to a step were told."""
        self._last[trial] = run, step
        append_line(self._told, {"trial": trial, "run": run, "step": step})


def _run_id(content: Any) -> str | None:
    run_id = content.get("sweep") if isinstance(content, dict) else content
    if not isinstance(run_id, str | None):
        raise TypeError("it names no run")
    return run_id
