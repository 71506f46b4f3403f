"""The benchmark of tracking runs, and its figures are right."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tracking
from benchmarks.tracking import WITH, WITHOUT
from blocklocal.config import make_config
from blocklocal.sweep_tracked import parameters_of


def _repeat(without: float, tracked: float) -> dict[str, Any]:
    samples = {
        name: {"rate": rate, "details": {"cpu_ms": 1.0}}
        for name, rate in ((WITHOUT, without), (WITH, tracked))
    }
    return {
        "busy_cores": 0.0,
        "load_average": 0.0,
        "stolen_s": 0.0,
        "order": [WITHOUT, WITH],
        "samples": samples,
    }


def _page(repeats: list[dict[str, Any]], listed: float) -> str:
    code = {"torch": "1", "ray": "2"}
    return tracking.page(
        {
            "environment": {"command": "c", "code": code, "cores": 2, "processor": "p"},
            "steps": 400,
            "skip": 150,
            "repeats": repeats,
            "sweep": {
                "trials": 1000,
                "parameters": 70,
                "metrics": 80,
                "write_s": 20.0,
                "list_s": [listed],
            },
        }
    )


def test_the_overhead_is_that_of_the_middle_repeat() -> None:
    repeats = [_repeat(20.0, 20.0), _repeat(20.0, 19.9), _repeat(20.0, 10.0)]
    assert tracking.overheads(repeats) == pytest.approx([0.0, 0.5025, 100.0], abs=1e-3)  # type: ignore[arg-type]
    rows = [line for line in _page(repeats, 1.5).splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| longer steps through tracking, % | 0.50 (0.00 to 100.00) | 1 | yes |",
        "| seconds to list 1000 trials | 1.50 (1.50 to 1.50) | 2 | yes |",
    ]
    assert _page([_repeat(20.0, 19.0)], 2.5).count("| no |") == 2


def test_a_sweep_is_written_and_listed() -> None:
    written = tracking.sweep(3, 2, 1)
    assert (written["trials"], written["metrics"]) == (3, 32)
    assert written["parameters"] == len(parameters_of(make_config({}))) >= 50


def test_a_tracked_run_is_clocked(ray_cluster: None) -> None:
    sample = tracking.run_once(12, 2, 0.001, tracked=True, blocks=2)
    assert sample["rate"] > 0 and sample["details"]["cpu_ms"] >= 0
