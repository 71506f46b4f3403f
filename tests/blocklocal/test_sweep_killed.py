"""A sweep whose driver is killed goes on: the same trials at the end, none of them twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.blocklocal.helpers import SCRIPT
from tuning.tune_state import KEPT, STATE, Keeper, restore_state

SWEEP = {
    "run": {"name": "killed"},
    "network": {"kind": "mlp", "widths": [64, 64]},
    "blocks": {"at": ["layer2"]},
    "engine": {"kind": "sequential", "resources": {"threads": 1}},
    "training": {"steps": 600, "batch": 32, "evaluate_every": 60},
    "sweep": {
        "trials": 4,
        "parallel": 2,
        "directory": "swept",
        # Stops late, so that others are on their way when the first trial ends.
        "scheduler": {"kind": "asha", "grace": 480},
    },
    "space": {"optimizer.lr": {"loguniform": [1e-3, 1e-1]}},
}


def tune(here: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SCRIPT), "tune", *words],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def states(here: Path) -> list[str]:
    """The status of every trial that has begun."""
    files = sorted(here.glob("swept/trials/????/state.json"))
    return [json.loads(file.read_text())["status"] for file in files]


def test_a_killed_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    process = tune(tmp_path, "sweep.yaml")

    def one_finished_and_one_on_its_way() -> bool:
        return {"finished", "running"} <= set(states(tmp_path))

    until(one_finished_and_one_on_its_way, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = [
        file.parent
        for file in tmp_path.glob("swept/trials/????/state.json")
        if json.loads(file.read_text())["status"] == "finished"
    ]
    assert finished
    before = {run: (run / "metrics.jsonl").read_bytes() for run in finished}

    process = tune(tmp_path, "--resume", "swept")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    rows = list(csv.DictReader((tmp_path / "swept/trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert len({row["optimizer.lr"] for row in rows}) == 4
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert sorted(p.name for p in (tmp_path / "swept/trials").iterdir()) == [
        "0000",
        "0001",
        "0002",
        "0003",
    ]
    for run, metrics in before.items():
        assert (run / "metrics.jsonl").read_bytes() == metrics  # not trained again
    for run in (tmp_path / "swept/trials").iterdir():
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        trained = [record["step"] for record in steps if record["split"] == "train"]
        assert trained == list(range(len(trained)))
    assert_mlflow_knows(tmp_path)


def assert_mlflow_knows(here: Path) -> None:
    """All that every trial told is there, and nothing twice."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "blocklocal"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.run_name or "" for r in runs) == ["0000", "0001", "0002", "0003", "swept"]
    for run in runs:
        assert run.info.status == "FINISHED"
        if (name := run.info.run_name or "") != "swept":
            lines = (here / "swept/trials" / name / "metrics.jsonl").read_text()
            records = [json.loads(line) for line in lines.splitlines()]
            written = [
                (r["step"] + 1, r["block2/loss"]) for r in records if r["split"] == "validation"
            ]
            history = client.get_metric_history(run.info.run_id, "validation/loss")
            told = sorted((m.step, m.value) for m in history)
            # A trial that is stopped earlier than its last life came has more records.
            assert told and told == written[: len(told)]


WHOLE = '{"trial_data": [["{}", "{}"]]}'


def test_half_a_state_is_replaced_by_the_copy(tmp_path: Path) -> None:
    state = tmp_path / STATE
    state.mkdir()
    assert not restore_state(tmp_path)
    (state / "experiment_state-1.json").write_text(WHOLE)
    (state / "search-1.pkl").write_bytes(b"x")
    assert restore_state(tmp_path)
    Keeper(tmp_path).look()
    (state / "experiment_state-1.json").write_text(WHOLE[:9])  # a kill in the middle of writing
    (state / "experiment_state-2.json").write_text("")
    Keeper(tmp_path).look()  # keeps no half
    assert restore_state(tmp_path)
    assert [p.name for p in sorted(state.iterdir())] == ["experiment_state-1.json", "search-1.pkl"]
    assert (state / "experiment_state-1.json").read_text() == WHOLE
    for file in (*state.iterdir(), *(tmp_path / KEPT).iterdir()):
        file.write_bytes(b"")
    assert not restore_state(tmp_path)
