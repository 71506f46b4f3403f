"""What a trial's runs have recorded: its evaluations, and what became of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning.errors import UserError, named
from orchestrator.files import child
from orchestrator.record_files import COPY, read_text
from orchestrator.rundir import RunDirectory
from tuning.space import Values

FROM = "from"
"""Beside the checkpoints that a run begins with: the run that they are of."""
Metrics = dict[str, float]
_BLOCK = re.compile(r"block(\d+)/")


@dataclass(frozen=True)
class Evaluation:
    """What a trial reports after so many finished steps.

    Attributes:
        metrics: `validation/block2/loss`, `train/feedback1/loss` and so on; `validation/loss` is
            that of the last block.
    """

    steps: int
    metrics: Metrics


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        status: `finished` is a run to its last step; `stopped` one that a scheduler ended; `failed`
            one that cannot be trained, and `lost` one whose processes were lost too often.
        run: its last run, in the directory of the trials; None if it never began.
        evaluations: of that run and those that it goes on from.
        why: a sentence, of a trial that failed or was lost.
    """

    number: int
    values: Values
    status: str
    run: Path | None
    evaluations: list[Evaluation]
    why: str = ""

    def last(self, metric: str) -> float | None:
        """The metric at the last evaluation."""
        return self.evaluations[-1].metrics.get(metric) if self.evaluations else None


def read_evaluations(run: RunDirectory) -> list[Evaluation]:
    """The evaluations of a run, in the order of steps."""
    found: dict[int, Metrics] = {}
    trained: dict[int, Metrics] = {}
    for record in run.read_metrics():
        steps, split = record["step"] + 1, record["split"]
        flat = flatten(split, record)
        if split == "train":
            trained[steps] = flat
        else:
            found.setdefault(steps, {}).update(flat)
    return [
        Evaluation(steps, {**trained.get(steps, {}), **metrics})
        for steps, metrics in sorted(found.items())
    ]


def flatten(split: str, record: Mapping[str, Any]) -> Metrics:
    """Metrics by name, `validation/block2/loss`; those of the last block also without its name.

    Args:
        record: `block2/loss` to value, perhaps among others.
    """
    flat = {f"{split}/{name}": value for name, value in record.items() if "/" in name}
    blocks = [int(found[1]) for name in record if (found := _BLOCK.match(name))]
    last = f"block{max(blocks, default=0)}/"
    for name, value in record.items():
        if name.startswith(last):
            flat[f"{split}/{name.removeprefix(last)}"] = value
    return flat


def runs_of(directory: Path, run: str) -> list[RunDirectory]:
    """A run of a trial and the runs that it goes on from, the first one first.

    Args:
        directory: of all runs of the sweep.

    Raises:
        UserError: when one is damaged, or goes on from itself.
    """
    found: dict[str, RunDirectory] = {}
    while True:
        path = child(directory, run, "the run of a trial")
        if run in found:
            raise UserError(f"{named(path)} goes on from itself: {COPY}")
        found[run] = RunDirectory.open(path)
        settings = found[run].config.get("run")
        start = settings.get("start") if isinstance(settings, dict) else None
        if not isinstance(start, str) or not os.path.lexists(Path(start) / FROM):
            return [*found.values()][::-1]
        run = read_text(Path(start) / FROM).strip()


def read_lineage(directory: Path, run: str) -> list[Evaluation]:
    """The evaluations of a run after those of the runs that it goes on from."""
    told: list[Evaluation] = []
    for part in runs_of(directory, run):
        if own := read_evaluations(part):
            told = [e for e in told if e.steps < own[0].steps] + own
    return told
