"""What the tests of run directories and of the trainer share."""

from __future__ import annotations

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


def spans_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(run.path / "spans.jsonl")]
