"""What MLflow was told of a sweep, kept on disk: a resumed sweep goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.files import replace_file, write_all
from orchestrator.lines import open_lines, read_lines

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
        if self._ids.exists():
            self.run_id = json.loads(self._ids.read_text()).get("sweep")
        self._last: dict[str, tuple[str, int]] = {}
        if self._told.exists():
            for _, record in read_lines(self._told):
                self._last[record["trial"]] = record["run"], record["step"]

    def sweep(self, run_id: str | None) -> None:
        """Keep how MLflow calls the run of the sweep."""
        if run_id is not None and run_id != self.run_id:
            self.run_id = run_id
            replace_file(self._ids, [json.dumps({"sweep": run_id}).encode()])

    def last(self, trial: str) -> tuple[str, int] | None:
        """The run and the step that were told last; None where nothing was."""
        return self._last.get(trial)

    def told(self, trial: str, run: str, step: int) -> None:
        """Keep that a trial's metrics up to a step were told."""
        self._last[trial] = run, step
        line = json.dumps({"trial": trial, "run": run, "step": step}) + "\n"
        with open_lines(self._told) as file:
            write_all(file.fileno(), line.encode())
