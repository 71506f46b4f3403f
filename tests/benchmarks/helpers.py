"""Small workloads, made-up repeats and losses, and a crew to lend, for tests of benchmarks."""

from __future__ import annotations

from typing import Any

from benchmarks import measuring
from benchmarks.crew import Crew
from benchmarks.workloads import Workload
from orchestrator.incidents import Incident
from orchestrator.losses import Loss

Written = dict[str, dict[str, Any]]
"""Records by name."""

TINY = Workload("mlp", 8, 8, layers=2)


def repeat(**rates: float) -> measuring.Repeat:
    samples: dict[str, measuring.Sample] = {
        name: {"rate": rate, "details": {}} for name, rate in rates.items()
    }
    return {
        "busy_cores": 0.0,
        "load_average": 0.0,
        "stolen_s": 0.0,
        "order": list(samples),
        "samples": samples,
    }


class Lent:
    """A crew that outlives the benchmark that uses it."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew

    def __enter__(self) -> Crew:
        return self.crew

    def __exit__(self, *_: object) -> None:
        pass


def lost(process: int, at: float, **seconds: float) -> Incident:
    """An incident noticed at `at` in which one process was lost."""
    loss = Loss("block1", "actor", "node", process, "killed")
    return Incident(1, at, 50, [loss], resumed=40, seconds=seconds)
