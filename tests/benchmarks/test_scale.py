"""The benchmark of scale: its costs by hand, and a tiny run."""

from __future__ import annotations

from pathlib import Path

from benchmarks import scale
from tests.benchmarks.helpers import Written


def test_scale(written: Written, tmp_path: Path, ray_cluster: None) -> None:
    options = "--repeats 1 --blocks 2 --steps 20 --warmup 5 --long-steps 20 --parts 2"
    scale.main(options.split())
    (marks,) = written["scale"]["sweep"]["2"]
    assert [mark["step"] for mark in marks] == [5, 20]
    assert marks[1]["driver"] >= marks[0]["driver"]
    assert {"gcs", "raylet"} <= set(marks[0])
    assert "| 10 to 20 |" in (tmp_path / "scale.md").read_text()


def test_cost_is_by_steps_and_blocks() -> None:
    names = ("driver", "gcs", "raylet", "wall")
    first = {"step": 10} | dict.fromkeys(names, 1.0)
    last = {"step": 20} | {name: 2.0 + i for i, name in enumerate(names)}
    assert scale.cost(first, last, 2) == {"driver": 50, "gcs": 100, "raylet": 150, "wall": 200}
