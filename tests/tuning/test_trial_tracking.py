"""What MLflow is told of the trials of a sweep, and that the sweep does not depend on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn, zeros

from tuning.known import Known
from tuning.trial_tracking import Description, Tracking

FILES = (Path("config.yaml"), Path("trace.json"))


class FakeTracker:
    """Writes down every call."""

    def __init__(self, broken: Collection[str] = ()) -> None:
        self.run_id = "parent"
        self.calls: list[tuple[Any, ...]] = []
        self.broken = broken

    def _note(self, *call: Any) -> None:
        if call[0] in self.broken:
            raise OSError(f"no {call[0]}")
        self.calls.append(call)

    def start_trial(
        self, name: str, parameters: Mapping[str, object], tags: Any, *, wait: float
    ) -> str:
        assert wait == 0  # Tune's loop waits for nobody
        self._note("start", name, dict(parameters), dict(tags))
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


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The directory of a sweep, and in it a run."""
    (tmp_path / "0003").mkdir()
    (tmp_path / "0003-from-0001-40-abc").mkdir()
    return tmp_path


def describe(run: Path) -> Description:
    return Description({"optimizer.lr": 0.1}, {"rule": "bll", "run": run.name}, lambda: FILES)


def told(step: int, **more: Any) -> dict[str, Any]:
    own = {"step": step, "training_iteration": 3, "done": False, "pid": 1}
    return {**own, "validation/block1/loss": 0.5, "train/loss": 1, **more}


NEW = {"optimizer.lr": 0.2}
METRICS = {"validation/block1/loss": 0.5, "train/loss": 1}


def test_a_trial_in_mlflow(here: Path) -> None:
    tracker = FakeTracker()
    tracking = Tracking(tracker, Known(here), describe)
    run, other = here / "0003", here / "0003-from-0001-40-abc"
    tracking.told("0003", run, told(20), {})
    tracking.told("0003", run, told(40), {})
    tracking.told("0003", run, told(20), {})  # again, after a loss
    tracking.told("0003", other, told(60), {"optimizer.lr": 0.2})
    tracking.told("0003", other, told(80), {"optimizer.lr": 0.2})
    tracking.over("0003", other, "FINISHED")
    tracking.best("0003", nn.Identity(), zeros(2, 1), "digits")
    tracking.end("FINISHED", [Path("report.md")])
    assert tracker.calls == [
        ("start", "0003", {"optimizer.lr": 0.1}, {"rule": "bll", "run": "0003"}),
        ("metrics", "0003", 20, METRICS),
        ("metrics", "0003", 40, METRICS),
        ("start", "0003", {"optimizer.lr": 0.1}, {"rule": "bll", "run": other.name}),
        ("mutated", "0003", 60, {"optimizer.lr": 0.2}),
        ("metrics", "0003", 60, METRICS),
        ("metrics", "0003", 80, METRICS),
        ("file", "0003", FILES[0]),
        ("file", "0003", FILES[1]),
        ("end", "0003", "FINISHED"),
        ("model", "0003"),
        ("register", "0003", "digits", "best"),
        ("file", Path("report.md")),
        ("end", "FINISHED"),
    ]


def test_a_resumed_sweep_tells_nothing_twice(here: Path) -> None:
    """Trials tell Tune again all that they have ever reported."""
    Tracking(FakeTracker(), Known(here), describe).told("0003", here / "0003", told(20), {})
    with (here / "told.jsonl").open("a") as file:
        file.write('{"trial": "0003", "ru')  # a kill in the middle of writing
    tracker = FakeTracker()
    known = Known(here)
    assert known.run_id == "parent"
    tracking = Tracking(tracker, known, describe)
    taken = here / "0003-from-0001-40-abc"
    for run, step, changed in ((here / "0003", 20, {}), (here / "0003", 40, {}), (taken, 60, NEW)):
        tracking.told("0003", run, told(step), changed)
    Tracking(tracker, Known(here), describe).told("0003", taken, told(80), NEW)
    assert [call for call in tracker.calls if call[0] != "start"] == [
        ("metrics", "0003", 40, METRICS),
        ("mutated", "0003", 60, NEW),
        ("metrics", "0003", 60, METRICS),
        ("metrics", "0003", 80, METRICS),
    ]
    assert tracker.calls[0][:2] == ("start", "0003")


def test_a_trial_that_failed_before_its_first_report_is_there_too(here: Path) -> None:
    tracker = FakeTracker()
    tracking = Tracking(tracker, Known(here), describe)
    tracking.over("0003", here / "0003", "FAILED", "the loss is nan")
    tracking.over("0004", here / "never", "FAILED", "no room")
    why = {"rule": "bll", "run": "0003", "why": "the loss is nan"}
    assert tracker.calls == [
        ("start", "0003", {"optimizer.lr": 0.1}, why),
        ("file", "0003", FILES[0]),
        ("file", "0003", FILES[1]),
        ("end", "0003", "FAILED"),
        ("start", "0004", {}, {"why": "no room"}),
        ("end", "0004", "FAILED"),
    ]


def test_trials_of_an_interrupted_sweep_do_not_run_on(here: Path) -> None:
    tracker = FakeTracker()
    tracking = Tracking(tracker, Known(here), describe)
    tracking.told("0003", here / "0003", told(20), {})
    tracking.end("KILLED")
    assert tracker.calls[-2:] == [("end", "0003", "KILLED"), ("end", "KILLED")]


def test_what_cannot_be_told_stops_neither_the_sweep_nor_the_rest(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = FakeTracker({"start", "model", "metrics"})
    tracking = Tracking(tracker, Known(here), describe)
    for step in (20, 40):
        tracking.told("0003", here / "0003", told(step), {})
    assert caplog.text.count("MLflow is not told everything (no start): the sweep goes on") == 1
    tracker.broken = {"model"}
    tracking.told("0003", here / "0003", told(60), {})
    tracking.over("0003", here / "0003", "FINISHED")
    tracking.best("0003", nn.Identity(), zeros(2, 1), "digits")
    tracking.end("FINISHED", [Path("report.md")])
    assert [call[0] for call in tracker.calls] == [
        "start", "metrics", "file", "file", "end", "file", "end",
    ]  # fmt: skip
    assert caplog.text.count("MLflow is not told everything") == 2
