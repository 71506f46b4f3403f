"""The punisher: its page begins with what was asked, and a tiny run keeps the bits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import punisher, punisher_page, records
from benchmarks.killer import Kill
from tests.benchmarks.helpers import lost


def run(between: float, every: int, goodput: float, seconds: float, same: bool) -> dict[str, Any]:
    phases = {"noticing": 0.25, "starting": seconds - 1.25, "replaying": 1.0}
    kill = {**asdict(Kill(1.0, "block", (7,))), "recovery": seconds, "phases": phases}
    return {
        "every": every,
        "between": between,
        "planned": 2,
        "steps": 100,
        "rate_without_kills": 10.0,
        "seconds": 60.0,
        "new_steps": 90,
        "goodput": goodput,
        "kills": [kill, {**kill, "recovery": None, "phases": {}}],
        "incidents": [lost(7, 10.0, **phases).record()],
        "same_bits": same,
    }


def punished_page(*runs: dict[str, Any]) -> str:
    record = {
        "environment": records.environment(),
        "workload": {**asdict(punisher.WORKLOAD), "rule": "local"},
        "transport": "direct",
        "nodes": False,
        "seed": 0,
        "runs": list(runs),
    }
    return punisher_page.page(json.loads(json.dumps(record)))


@pytest.mark.parametrize(
    ("goodput", "seconds", "same", "words"),
    [(0.80, 4.9, True, ("yes", "yes", "yes")), (0.79, 5.0, False, ("no", "no", "no"))],
)
def test_the_punishers_page_begins_with_what_was_asked(
    goodput: float, seconds: float, same: bool, words: tuple[str, ...]
) -> None:
    text = punished_page(run(30.0, 100, goodput, seconds, same))
    asked = records.table_of(text).splitlines()[2:]
    assert tuple(line.split("|")[-2].strip() for line in asked) == words
    assert f"| 30 | 100 | 2 of 2 | 1 | 90 | 60 | 10 | 10.0 | {goodput:.0%} |" in text
    assert "| noticing | 0.25 (0.25 to 0.25) |\n| ending | 0.00 (0.00 to 0.00) |" in text
    assert "| goodput | a kill" not in text


def test_the_punishers_table_has_both_intervals() -> None:
    runs = [run(b, e, b * e / 10_000, 4.0, True) for e in (20, 100) for b in (15.0, 60.0)]
    text = punished_page(*runs)
    assert "| goodput | a kill every 15 s | a kill every 60 s |" in text
    assert "| a snapshot every 100 steps | 15% | 60% |" in text
    assert "goodput, 2 kills, one every 30 s" not in text


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_the_punisher_kills_and_the_bits_are_the_same(tmp_path: Path) -> None:
    punisher.main(["--quick", "--results", str(tmp_path)])
    (found,) = json.loads((tmp_path / "punisher.json").read_text())["runs"]
    (kill,), (incident,) = found["kills"], found["incidents"]
    assert kill["processes"] == [loss["process"] for loss in incident["losses"]]
    assert 0 < kill["at"] < 2 and kill["recovery"] > kill["phases"]["starting"] > 0
    assert sum(kill["phases"].values()) == pytest.approx(kill["recovery"], abs=0.5)
    assert found["same_bits"] and 0 < found["goodput"] < 1
    assert sum(found["new_steps_by_second"]) == found["new_steps"] <= found["steps"]
    assert "1 of 1" in (tmp_path / "punisher.md").read_text()
