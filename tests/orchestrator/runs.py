"""What the tests of run directories and of the trainer share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.lines import read_lines
from orchestrator.plan import BlockPlan, Plan
from orchestrator.rundir import RunDirectory

PLAN = Plan(
    blocks=(
        BlockPlan(
            index=1,
            units=("0",),
            parameters=1,
            input_shape=(1,),
            output_shape=(1,),
            boundary_bytes=1,
            activation_bytes=1,
        ),
    )
)


CONFIG = {"rule": {"kind": "bll", "lr": 1e-08, "betas": (0.9, 0.5)}, "name": "1e-3", "é": None}
PLAIN = {"rule": {"kind": "bll", "lr": 1e-08, "betas": [0.9, 0.5]}, "name": "1e-3", "é": None}
"""CONFIG as it is read back."""


def make(path: Path) -> RunDirectory:
    return RunDirectory.create(path, config=CONFIG, version={"torch": "2"}, plan=PLAN)


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Whatever was appended, of a run or not."""
    return [record for _, record in read_lines(run.path / "metrics.jsonl")]


def spans_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(run.path / "spans.jsonl")]
