"""The benchmark of reach: a tiny run waits as long as it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import reach


def test_reach_runs(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reach, "RULES", {"backprop": reach.RULES["backprop"]})
    words = ["--repeats", "1", "--steps", "8", "--grain", "0.001", "--blocks", "2"]
    reach.main([*words, "--results", str(tmp_path)])
    record = json.loads((tmp_path / "reach.json").read_text())
    assert reach.expected(reach.RULES["backprop"], 2, 1.0) == 5
    assert record["step_ms"]["backprop"]["2"][0] > 5  # its waits alone, one after the other
    assert "K = 2" in (tmp_path / "reach.md").read_text()
