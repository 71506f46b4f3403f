"""What MLflow is told of the trials of a sweep, and that the sweep does not depend on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn, zeros

from tuning.trial_tracking import Description, Ids, Tracking

FILES = (Path("config.yaml"), Path("trace.json"))


class FakeTracker:
    """Writes down every call."""

    def __init__(self, broken: bool = False) -> None:
        self.run_id = "parent"
        self.calls: list[tuple[Any, ...]] = []
        self._broken = broken

    def _note(self, *call: Any) -> None:
        if self._broken:
            raise ConnectionError("no server")
        self.calls.append(call)

    def start_trial(
        self, name: str, parameters: Mapping[str, object], tags: Any, run_id: str | None = None
    ) -> str:
        self._note("start", name, dict(parameters), dict(tags), run_id)
        return f"id of {name}"

    def log_metrics(self, trial_name: str, step: int, metrics: Mapping[str, float]) -> None:
        self._note("metrics", trial_name, step, dict(metrics))

    def mutated(self, trial_name: str, step: int, parameters: Mapping[str, object]) -> None:
        self._note("mutated", trial_name, step, dict(parameters))

    def artifact(self, trial_name: str, path: Path, directory: str | None = None) -> None:
        self._note("file", trial_name, path)

    def sweep_artifact(self, path: Path, directory: str | None = None) -> None:
        self._note("file", path)

    def log_model(self, trial_name: str, model: Any, example_input: Any) -> None:
        self._note("model", trial_name)

    def register(self, trial_name: str, model_name: str, alias: str) -> None:
        self._note("register", trial_name, model_name, alias)

    def end_trial(self, trial_name: str, status: str) -> None:
        self._note("end", trial_name, status)

    def end(self, status: str) -> None:
        self._note("end", status)


def describe(run: Path) -> Description:
    return Description({"optimizer.lr": 0.1}, {"rule": "bll", "run": run.name}, FILES)


def told(step: int, **more: Any) -> dict[str, Any]:
    own = {"step": step, "training_iteration": 3, "done": False, "pid": 1}
    return {**own, "validation/block1/loss": 0.5, "train/loss": 1, **more}


METRICS = {"validation/block1/loss": 0.5, "train/loss": 1}


def test_a_trial_in_mlflow(tmp_path: Path) -> None:
    tracker = FakeTracker()
    tracking = Tracking(tracker, Ids(tmp_path / "ids.json"), describe)
    run, other = Path("0003"), Path("0003-from-0001-40-abc")
    tracking.told("0003", run, told(20), {})
    tracking.told("0003", run, told(40), {})
    tracking.told("0003", run, told(20), {})  # again, after a loss
    tracking.told("0003", other, told(60), {"optimizer.lr": 0.2})
    tracking.over("0003", other, "FINISHED")
    tracking.best("0003", nn.Identity(), zeros(2, 1), "digits")
    tracking.end("FINISHED", [Path("report.md")])
    assert tracker.calls == [
        ("start", "0003", {"optimizer.lr": 0.1}, {"rule": "bll", "run": "0003"}, None),
        ("metrics", "0003", 20, METRICS),
        ("metrics", "0003", 40, METRICS),
        ("mutated", "0003", 60, {"optimizer.lr": 0.2}),
        ("metrics", "0003", 60, METRICS),
        ("file", "0003", FILES[0]),
        ("file", "0003", FILES[1]),
        ("end", "0003", "FINISHED"),
        ("model", "0003"),
        ("register", "0003", "digits", "best"),
        ("file", Path("report.md")),
        ("end", "FINISHED"),
    ]


def test_a_resumed_sweep_goes_on_with_its_runs(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    Tracking(FakeTracker(), Ids(path), describe).told("0001", Path("0001"), told(20), {})
    assert json.loads(path.read_text()) == {"sweep": "parent", "0001": "id of 0001"}
    tracker = FakeTracker()
    ids = Ids(path)
    assert ids.get("sweep") == "parent"
    Tracking(tracker, ids, describe).told("0001", Path("0001"), told(40), {})
    assert tracker.calls[0][-1] == "id of 0001"


def test_a_sweep_goes_on_without_mlflow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking(FakeTracker(broken=True), Ids(tmp_path / "ids.json"), describe)
    for step in (20, 40):
        tracking.told("0001", Path("0001"), told(step), {})
    tracking.over("0001", Path("0001"), "FINISHED")
    tracking.end("FINISHED")
    assert caplog.text.count("MLflow failed (no server): the sweep goes on without it") == 1
