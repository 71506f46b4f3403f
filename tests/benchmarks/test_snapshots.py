"""The benchmark of snapshots: its page compares within a repeat, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring, records, snapshots
from benchmarks.survival import WARMUP


def test_the_page_of_snapshots_compares_within_a_repeat() -> None:
    def repeat(fast: float, slow: float) -> dict[str, Any]:
        samples = {
            snapshots.WITHOUT: {"rate": fast, "details": {"snapshots": 0}},
            snapshots.WITH: {"rate": slow, "details": {"snapshots": 5}},
        }
        return {"busy_cores": 0.0, "load_average": 0.0, "stolen_s": 0.0, "samples": samples}

    case = {
        "workload": {"batch": 128},
        "parameters": 5_100_000,
        "steps": WARMUP + 100,
        "repeats": [repeat(10.0, 9.8), repeat(20.0, 19.2), repeat(5.0, 4.9)],
    }
    record = {"environment": records.environment(), "transport": "direct", "cases": [case]}
    text = snapshots.page(record)
    assert "| 0.980 (0.960 to 0.980) | 0.97 | yes |" in text and "5.1 M" in text
    assert snapshots.delays(case)[2] == pytest.approx(1000 * (100 / 4.9 - 100 / 5.0) / 5)
    case["repeats"] = [repeat(10.0, 9.6)]
    assert "| 0.960 (0.960 to 0.960) | 0.97 | no |" in snapshots.page(record)


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_snapshots_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "LOOKING_SECONDS", 0.05)
    snapshots.main(["--quick", "--results", str(tmp_path)])
    (case,) = json.loads((tmp_path / "snapshots.json").read_text())["cases"]
    (repeat,) = case["repeats"]
    taken = repeat["samples"][snapshots.WITH]["details"]["snapshots"]
    assert taken == (case["steps"] - WARMUP) // snapshots.EVERY >= 3
    assert all(one["rate"] > 0 for one in repeat["samples"].values())
    assert "| 16 |" in (tmp_path / "snapshots.md").read_text()
