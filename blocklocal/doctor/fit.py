"""Whether the plan of a run finds room in a cluster."""

from __future__ import annotations

from blocklocal.doctor.check import Check
from learning.errors import UserError
from orchestrator.placement import check_fit, free_resources
from orchestrator.plan import Plan


def check_plan(plan: Plan, lanes: int) -> Check:
    """Whether each lane's blocks fit what is free; where not, the refusal that a run would get."""
    need = f"{len(plan.blocks)} blocks, {sum(b.cpus for b in plan.blocks):g} CPUs"
    need += f" and {sum(b.gpus for b in plan.blocks):g} GPUs"
    try:
        check_fit(plan, free_resources(), lanes)
    except UserError as error:
        return Check("plan", False, str(error))
    return Check("plan", True, f"{need}, in each of {lanes} lanes" if lanes > 1 else need)
