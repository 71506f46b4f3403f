"""A run whose tracking server goes away: it trains on and finishes, and the rest is sent later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from blocklocal import cli
from blocklocal.observers import TrackingObserver
from orchestrator.events import Metrics
from tests.blocklocal.helpers import SMALL, command, metrics_of, state_of
from tests.clock import no_waits
from tests.tuning.server import Server
from tuning import courier

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = Server(tmp_path, monkeypatch)
    yield server
    server.stop()


def leaves_at(step: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes away when a step is finished, after it has taken the first metrics."""
    stepped = TrackingObserver.stepped

    def then(observer: TrackingObserver, done: int, metrics: Metrics) -> None:
        stepped(observer, done, metrics)
        if done == step:
            observer.wait()
            sender = observer._tracker._courier
            assert sender is not None
            with sender._state:
                assert sender._state.wait_for(lambda: not sender.spool.waiting, 600)
            server.stop()

    monkeypatch.setattr(TrackingObserver, "stepped", then)


def test_a_run_outlives_its_server_and_tells_it_all_later(
    server: Server,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    leaves_at(10, server, monkeypatch)
    run = tmp_path / "run"
    words = [*SMALL, "tracking.enabled=true", "tracking.patience=600", f"run.directory={run}"]
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        no_waits(patch)
        assert cli.main(["train", *words, f"tracking.uri={server.uri}"]) == 0
    assert state_of(run)["status"] == "finished"
    assert f"send them with blocklocal track {run}" in caplog.text
    read = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    before = read.get_run(state_of(run)["mlflow_run_id"])
    assert before.info.status == "RUNNING"
    assert len(read.get_metric_history(before.info.run_id, "train/block1/loss")) == 11
    server.start()
    assert "records to MLflow" in command(capsys, "track", run)
    after = read.get_run(before.info.run_id)
    assert after.info.status == "FINISHED" and len(after.outputs.model_outputs) == 1
    for split, name in (("train", "block1/loss"), ("validation", "block2/accuracy")):
        history = read.get_metric_history(after.info.run_id, f"{split}/{name}")
        written = [(r["step"], r[name]) for r in metrics_of(run) if r["split"] == split]
        assert sorted((m.step, m.value) for m in history) == written
    files = MlflowClient(server.uri).list_artifacts(after.info.run_id)
    names = {"weights", "config.yaml", "plan.json", "version.json", "report.md", "trace.json"}
    assert {f.path for f in files} == names


def test_the_next_resume_sends_what_waits(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    run = tmp_path / "run"
    words = [*SMALL, "tracking.enabled=true", "tracking.patience=600", f"run.directory={run}"]
    with monkeypatch.context() as patch:
        no_waits(patch)
        leaves_at(10, server, patch)
        assert cli.main(["train", *words, f"tracking.uri={server.uri}"]) == 0
    server.start()
    assert cli.main(["train", "--resume", str(run)]) == 0
    read = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tracked = read.get_run(state_of(run)["mlflow_run_id"])
    history = read.get_metric_history(tracked.info.run_id, "train/block1/loss")
    assert sorted(m.step for m in history) == list(range(40))
    assert tracked.info.status == "FINISHED" and len(tracked.outputs.model_outputs) == 1
