"""What can be asked before training: the plan, and checks of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
import torch

from blocklocal import cli
from blocklocal import doctor as checks
from blocklocal.clusters import cluster
from blocklocal.config import make_config
from orchestrator.plan import Plan
from tests.blocklocal.helpers import SMALL, command

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("ray_cluster")
def test_doctor(capsys: Capture) -> None:
    out = command(capsys, "doctor")
    assert "FAILED" not in out
    for name in ("torch", "ray", "CPU", "object store", "16 MiB at"):
        assert name in out
    assert f"node {ray.nodes()[0]['NodeManagerAddress']}" in out


@pytest.mark.usefixtures("ray_cluster")
def test_doctor_compares_the_versions_of_every_node(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.9", "Alive": True}
    nodes = [*ray.nodes(), gone]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(checks, "NODE_SECONDS", 10.0)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("blocklocal: 1 checks failed (node 10.0.0.9)")
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert cli.main(["doctor"]) == 2
    address = nodes[0]["NodeManagerAddress"]
    said = f"blocklocal: 2 checks failed (node {address}, node 10.0.0.9)"
    assert capsys.readouterr().err.startswith(said)


def test_a_local_ray_reports_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: said.append(os.environ["RAY_USAGE_STATS_ENABLED"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster(make_config({})):
        pass
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with cluster(make_config({})):
        pass
    assert said == ["0", "1"]


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
    assert "one step of rule local" in out and "steps/s with rule local" in out
    assert "keeps the most" in out and "source" in out
