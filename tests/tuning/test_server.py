"""A tracking server that goes away and comes back: nothing is lost, told twice, or waited for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tests.clock import PATIENCE, no_waits
from tests.tuning.server import Server
from tuning import courier
from tuning.courier import Courier
from tuning.sending import send_waiting
from tuning.sweep_tracking import SweepTracker
from tuning.tracking import TrackingSettings

DOWN, UP = range(10, 60), range(60, 70)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second between attempts."""
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONGEST_PAUSE", 0.05)
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "20")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


def _sweep(place: Path, server: Server, patience: float = PATIENCE) -> SweepTracker:
    settings = TrackingSettings(uri=server.uri, patience=patience)
    queue = place / "sweep/tracking"
    tags = {"rule": "local"}
    return SweepTracker(settings, place, "mine", {"a.b": 1}, tags, queue=queue)


def _courier(sweep: SweepTracker) -> Courier:
    assert sweep._courier is not None
    return sweep._courier


def _until_it_fails(sweep: SweepTracker) -> None:
    sender = _courier(sweep)
    with sender._state:
        assert sender._state.wait_for(lambda: sender._failure is not None, 300)


def _read(place: Path, sweep: SweepTracker) -> tuple[MlflowClient, dict[str, str]]:
    """A client of the database, and the ids of the sweep's runs by name."""
    client = MlflowClient(f"sqlite:///{place}/mlflow.db", f"sqlite:///{place}/mlflow.db")
    assert sweep.run_id is not None
    experiment = client.get_run(sweep.run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{sweep.run_id}'")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return client, {run.info.run_name or "": run.info.run_id for run in runs}


def _log(sweep: SweepTracker, trial: str, steps: range) -> None:
    for step in steps:
        sweep.log_metrics(trial, step, {"train/block1/loss": float(step), "train/block2/loss": 1.0})


def test_a_server_that_comes_back_gets_everything_once(
    place: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = _sweep(place, server)
    first = sweep.start_trial("first", {"lr": 0.1}, {})
    _log(sweep, "first", range(10))
    with caplog.at_level(logging.WARNING):
        server.stop()
        _log(sweep, "first", DOWN)
        _until_it_fails(sweep)
        assert sweep.start_trial("second", {"lr": 0.2}, {}) == "waiting:second"
        _log(sweep, "second", DOWN)
        (place / "sweep/report.md").write_text("# report")
        sweep.artifact("second", place / "sweep/report.md")
        sweep.log_model("second", nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3))
        sweep.register("second", "digits", "best")
        sweep.end_trial("first", "FINISHED")
        assert _courier(sweep).spool.waiting >= len(DOWN) * 2 + 5
        server.start()
        _log(sweep, "second", UP)
        sweep.mutated("second", 70, {"optimizer.lr": 0.05, "rule.kind": "bll"})
        sweep.end_trial("second", "KILLED")
        sweep.end("FINISHED")
    client, runs = _read(place, sweep)
    assert set(runs) == {"first", "second"} and runs["first"] == first
    for trial, steps in (("first", range(60)), ("second", range(10, 70))):
        for block in (1, 2):
            history = client.get_metric_history(runs[trial], f"train/block{block}/loss")
            assert sorted(m.step for m in history) == list(steps)
    assert client.get_run(runs["second"]).data.metrics["mutation/optimizer.lr"] == 0.05
    served = MlflowClient(server.uri, server.uri)
    assert [f.path for f in served.list_artifacts(runs["second"])] == ["report.md"]
    statuses = [client.get_run(r).info.status for r in (runs["first"], runs["second"])]
    assert statuses == ["FINISHED", "KILLED"]
    version = client.get_model_version_by_alias("digits", "best")
    assert (int(version.version), version.run_id) == (1, runs["second"])
    said = [r.message for r in caplog.records if r.name.startswith("tuning")]
    assert len(said) == 2 and "training goes on" in said[0] and "again" in said[1]
    assert not list((place / "sweep/tracking").glob("0*.jsonl"))


def test_a_server_that_stays_away_leaves_a_queue_that_is_sent_later(
    place: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sweep = _sweep(place, server)
    server.stop()
    assert sweep.start_trial("first", {"lr": 0.1}, {}).endswith("first")
    _log(sweep, "first", DOWN)
    sweep.end_trial("first", "FINISHED")
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        no_waits(patch)
        sweep.end("FINISHED")
    assert f"records for MLflow at {server.uri} wait in" in caplog.text
    assert f"blocklocal track {place / 'sweep'}" in caplog.text
    server.start()
    assert send_waiting(place / "sweep/tracking")[0] == len(DOWN) + 4
    client, runs = _read(place, sweep)
    history = client.get_metric_history(runs["first"], "train/block1/loss")
    assert sorted(m.step for m in history) == list(DOWN)
    assert client.get_run(sweep.run_id or "").info.status == "FINISHED"


def test_an_interrupted_sweep_goes_on_with_the_same_runs(place: Path, server: Server) -> None:
    sweep = _sweep(place, server)
    first = sweep.start_trial("first", {"lr": 0.1}, {})
    _log(sweep, "first", range(3))
    _courier(sweep).close(20)  # as a killed process, only that all was sent
    again = _sweep(place, server)
    assert again.run_id == sweep.run_id
    assert again.start_trial("first", {"lr": 0.1}, {}, first) == first
    assert again.start_trial("second", {"lr": 0.2}, {}, "waiting:second") != "waiting:second"
    _log(again, "first", range(3, 5))
    again.end("FINISHED")
    client, runs = _read(place, again)
    assert set(runs) == {"first", "second"}
    history = client.get_metric_history(runs["first"], "train/block1/loss")
    assert sorted(m.step for m in history) == list(range(5))


def test_a_run_whose_making_was_not_answered_is_not_made_twice(
    place: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, lost = _sweep(place, server), list[str]()
    create = MlflowClient.create_run

    def lose(client: MlflowClient, *given: object, **options: object) -> object:
        made = create(client, *given, **options)  # type: ignore[arg-type]
        if not lost:
            lost.append(made.info.run_id)
            raise ConnectionResetError("the answer is lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", lose)
    sweep.start_trial("first", {"lr": 0.1}, {})
    sweep.end("FINISHED")
    _, runs = _read(place, sweep)
    assert runs == {"first": lost[0]}


def test_a_sweep_that_is_not_tracked_does_nothing(tmp_path: Path) -> None:
    sweep = SweepTracker(TrackingSettings(enabled=False), tmp_path / "sweep", "mine", {}, {})
    assert sweep.run_id is None and sweep.start_trial("first", {}, {}) == ""
    sweep.log_metrics("first", 0, {"a": 1.0})
    sweep.mutated("first", 0, {"a": 1.0})
    sweep.artifact("first", tmp_path / "gone")
    sweep.log_model("first", nn.Linear(1, 1), torch.zeros(1, 1))
    sweep.register("first", "digits", "best")
    sweep.end_trial("first", "FINISHED")
    sweep.end("FINISHED")
    assert list(tmp_path.iterdir()) == []
