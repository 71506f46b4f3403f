"""What can be asked before training: the plan, and checks of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocklocal import cli
from orchestrator.plan import Plan
from tests.blocklocal.helpers import SMALL, command

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("ray_cluster")
def test_doctor(capsys: Capture) -> None:
    out = command(capsys, "doctor")
    assert "FAILED" not in out
    for name in ("torch", "ray", "CPU", "object store", "versions on workers", "16 MiB at"):
        assert name in out


def test_doctor_says_what_failed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [cli.checks.Check("CPU", False, "0"), cli.checks.Check("ray", True, "2")]
    monkeypatch.setattr(cli.checks, "run", lambda address: iter(found))
    assert cli.main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert "FAILED  0" in captured.out and "ok  2" in captured.out
    assert captured.err == "blocklocal: 1 checks failed (CPU): mend them first\n"


def test_plan_prints_and_saves(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    out = command(capsys, "plan", *SMALL, "--save", file)
    plan = Plan.load(file)
    assert [b.units for b in plan.blocks] == [("layer1",), ("layer2", "layer3", "head")]
    assert f"plan {plan.hash()}" in out and "layer2 .. head" in out
