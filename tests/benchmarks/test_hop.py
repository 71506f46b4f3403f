"""The hop of a message: its figures by hand, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hop, measuring
from benchmarks.crew import Crew
from tests.benchmarks.helpers import Lent


def test_hop_runs(
    ray_cluster: None, crew: Crew, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "LOOKING_SECONDS", 0.05)
    monkeypatch.setattr(hop, "Crew", lambda size: Lent(crew))
    hop.main(["--quick", "--repeats", "1", "--results", str(tmp_path)])
    (done,) = json.loads((tmp_path / "hop.json").read_text())["repeats"]
    assert list(done["samples"]) == ["object_store", "direct", "pipe", "shared memory"]
    for sample in done["samples"].values():
        assert list(sample["details"]) == [str(size) for size in hop.SIZES[:3]]
        assert all(value > 0 for f in sample["details"].values() for value in f.values())


def test_hop_figures() -> None:
    trips = [2e-3] * 9 + [4e-3]
    found: dict[str, Any] = hop.figures(1000, trips, 0.5)
    assert found["latency_us"] == pytest.approx(1000) and found["bytes_per_second"] == 20_000
    assert 1000 <= found["latency_90_us"] <= 2000
