"""`blocklocal tune`: sweeps of small runs, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import command
from tests.blocklocal.sweeps import SMALL, assert_same_bits, table, write
from tests.orchestrator.engines import CPUS, eventually, free_cpus

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_a_sweep_of_actors_and_its_best_trial_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of one and two blocks, in parallel; the best one trains again with the same bits."""
    path = write(
        SMALL,
        blocks={"at": "auto"},
        engine={"kind": "ray"},
        space={"blocks.count": {"grid": [1, 2]}},
        sweep={"trials": 4, "scheduler": {"kind": "asha", "reduction": 2}},
    )
    said = command(capsys, "tune", path)
    assert "4/4  trial " in said and "best: trial " in said
    swept = Path("swept")
    assert eventually(lambda: free_cpus() == CPUS)
    rows = table(swept)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["blocks.count"] for row in rows} == {"1", "2"}
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    for name in ("report.md", "best.yaml", "curves.png", "parallel.png", "sweep.yaml"):
        assert (swept / name).is_file()
    best = yaml.safe_load((swept / "best.yaml").read_text())
    assert best["blocks"]["at"] != "auto"
    number = int((swept / "best.yaml").read_text().split()[2].rstrip(":"))
    assert rows[number]["status"] == "finished"
    command(capsys, "train", swept / "best.yaml", "run.directory=again")
    trained = RunDirectory.open(swept / "trials" / rows[number]["run"])
    assert_same_bits(trained, RunDirectory.open("again"))


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_a_lost_trial_goes_on_and_a_failed_one_stops_nobody(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    network = {
        "kind": "custom",
        "factory": "tests.tuning.fragile:build",
        "arguments": {
            "waits_for": str(here / "swept/trials/0000/checkpoints/index.json"),
            "marker": str(here / "killed"),
        },
    }
    tree = {**SMALL, "network": network, "blocks": {"at": ["4"]}}
    path = write(
        {**tree, "space": {"optimizer.lr": {"grid": [0.01, 1e6]}}},
        optimizer={"kind": "sgd", "lr": 0.1},
        sweep={"trials": 2, "parallel": 1},
    )
    said = command(capsys, "tune", path)
    assert "trial 0000 was lost and goes on from its last checkpoint" in said
    assert (here / "killed").exists()
    lost, failed = table(Path("swept"))
    assert (lost["status"], lost["steps"]) == ("finished", "24")
    assert failed["status"] == "failed" and "the loss of block" in failed["why"]
    steps = [r["step"] for r in RunDirectory.open("swept/trials/0000").read_metrics()]
    assert sorted(set(steps)) == list(range(24))
    assert "trial 0001 failed: the loss of block" in Path("swept/report.md").read_text()
    # Undisturbed it would have learnt the same.
    command(capsys, "train", "swept/best.yaml", "run.directory=again")
    assert_same_bits(RunDirectory.open("swept/trials/0000"), RunDirectory.open("again"))


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
@pytest.mark.parametrize(
    "sweep",
    [
        {"searcher": {"kind": "optuna", "startup": 2}, "scheduler": {"kind": "median"}},
        {"searcher": "random", "scheduler": {"kind": "hyperband", "reduction": 2}},
    ],
    ids=["optuna-median", "hyperband"],
)
def test_searchers_and_schedulers(capsys: pytest.CaptureFixture[str], sweep: Any) -> None:
    space = {
        "rule.kind": {"choice": ["local", "interlocking"]},
        "rule.reach": {"integer": [1, 2], "when": {"rule.kind": "interlocking"}},
        "optimizer.lr[2]": {"loguniform": [1e-3, 1e-1]},
    }
    path = write({**SMALL, "space": space}, sweep={**sweep, "trials": 4})
    command(capsys, "tune", path)
    rows = table(Path("swept"))
    assert len(rows) == 4 and {row["status"] for row in rows} <= {"finished", "stopped"}
    assert any(row["status"] == "finished" for row in rows)
    for row in rows:
        assert (row["rule.reach"] != "") == (row["rule.kind"] == "interlocking")
        config = RunDirectory.open(f"swept/trials/{row['run']}").config
        assert config["optimizer"]["lr"] == [0.001, float(row["optimizer.lr[2]"])]


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_mlflow_has_a_run_for_each_trial_inside_that_of_the_sweep(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    path = write(SMALL, tracking={"enabled": True}, sweep={"trials": 2})
    command(capsys, "tune", path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "blocklocal"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"swept", "0000", "0001"}
    parent = runs["swept"]
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {
        "report.md",
        "best.yaml",
        "curves.png",
    }
    for number, row in enumerate(table(here / "swept")):
        run = runs[f"000{number}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["rule"] == "local" and len(run.data.tags["plan"]) == 16
        assert run.info.status == "FINISHED"
        assert float(run.data.params["optimizer.lr"]) == float(row["optimizer.lr"])
        assert run.data.params["training.steps"] == "24"
        assert "tracking.uri" not in run.data.params and "tracking.uri" in parent.data.params
        loss = client.get_metric_history(run.info.run_id, "validation/block1/loss")
        assert [m.step for m in loss] == [6, 12, 18, 24]
        files = {a.path for a in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "plan.json", "report.md", "trace.json"} <= files
