"""The benchmark of the start: its phases add up."""

from __future__ import annotations

import pytest

from benchmarks import start
from tests.benchmarks.helpers import Written


def test_start(written: Written) -> None:
    start.main(["--repeats", "1", "--cases", "local, without tracking"])
    (run,) = written["start"]["cases"]["local, without tracking"]
    assert all(value >= 0 for value in run["phases"].values())
    assert run["seconds"] == pytest.approx(sum(run["phases"].values()))
    for phase in ("cluster start", "actors start"):  # processes that import PyTorch
        assert run["phases"][phase] > 0.5
    assert run["cpu"]["driver"] > 0
