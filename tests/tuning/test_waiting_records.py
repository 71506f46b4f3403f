"""Records that MLflow does not take, or not yet: training goes on, and nothing is lost or twice."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import nn

from learning.errors import UserError
from tests.clock import no_waits
from tests.tuning.conftest import Make
from tests.tuning.reading import SEND, all_sent, client_of, history
from tuning import courier
from tuning.sending import send_waiting
from tuning.tracker import Tracker
from tuning.tracking import TrackingSettings


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second between attempts."""
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONGEST_PAUSE", 0.02)


def test_training_does_not_wait_for_a_send_that_hangs(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is written down while a call to MLflow does not come back."""
    import threading

    tracker, called, goes_on = make(), threading.Event(), threading.Event()

    def hang(client: MlflowClient, run_id: str, **given: Any) -> None:
        called.set()
        assert goes_on.wait(300)
        SEND(client, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", hang)
    tracker.log_metrics(0, {"a": 0.0})
    assert called.wait(300)
    for step in range(1, 100):
        tracker.log_metrics(step, {"a": float(step)})
    lines = (place / "run/tracking/000001.jsonl").read_text().splitlines()
    assert sum('"metrics"' in line for line in lines) == 100
    goes_on.set()
    assert tracker.end() == 0
    assert history(place, tracker.run_id, "a") == [(i, float(i)) for i in range(100)]


def test_what_fails_waits_on_disk_and_is_sent_later(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = make()
    all_sent(tracker)

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("http://me:secret@host is gone")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        no_waits(patch)
        patch.setattr(MlflowClient, "log_batch", fail)
        tracker.log_metrics(0, {"a": 1.0})
        tracker.log_metrics(1, {"a": 2.0})
        left = tracker.end("FINISHED")
    assert left == 3  # with the end
    said = [r.message for r in caplog.records if r.name == "tuning.courier"]
    assert len(said) == 1 and "(http://me:***@host is gone): training goes on" in said[0]
    assert client_of(place).get_run(tracker.run_id or "").info.status == "RUNNING"
    assert history(place, tracker.run_id, "a") == []
    sent, names = send_waiting(place / "run/tracking")
    assert sent == 3 and names["run run"] == tracker.run_id
    assert history(place, tracker.run_id, "a") == [(0, 1.0), (1, 2.0)]
    assert client_of(place).get_run(tracker.run_id or "").info.status == "FINISHED"
    assert send_waiting(place / "run/tracking")[0] == 0


def test_what_was_told_and_not_acknowledged_is_there_once(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost after the batch was written: it is sent again, and MLflow has it once."""
    tracker, lost = make(), []

    def lose(client: MlflowClient, run_id: str, **given: Any) -> None:
        SEND(client, run_id, **given)
        if given.get("metrics") and not lost:
            lost.append(True)
            raise ConnectionResetError("the answer is lost")

    monkeypatch.setattr(MlflowClient, "log_batch", lose)
    tracker.log_metrics(0, {"a": 1.0, "b": 1.0})
    tracker.log_metrics(1, {"a": float("nan")})
    assert tracker.end() == 0 and lost
    assert history(place, tracker.run_id, "b") == [(0, 1.0)]
    assert len(history(place, tracker.run_id, "a")) == 2


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "mine.txt").write_text("mine")
    tracker = make()
    for step, name in enumerate(("loss", "not a name: $", "loss")):
        tracker.log_metrics(step, {name: 1.0})
    tracker.log_artifact(place / "run/gone.txt")
    tracker.log_artifact(place / "mine.txt")
    with caplog.at_level(logging.WARNING):
        assert tracker.end() == 0
    refused = (place / "run/tracking/refused.jsonl").read_text()
    assert "not a name: $" in refused and "gone.txt is gone" in refused
    assert caplog.text.count("MLflow refuses a record") == 2
    client = client_of(place)
    assert [f.path for f in client.list_artifacts(tracker.run_id or "")] == ["mine.txt"]
    assert history(place, tracker.run_id, "loss") == [(0, 1.0), (2, 1.0)]


def test_a_queue_in_which_mlflow_was_never_reached_starts_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(TrackingSettings(), place, place / "run/tracking", {"lr": 1}, {})
    tracker.log_metrics(3, {"loss": 2.0})
    tracker._courier.spool._lock.close()  # type: ignore[union-attr]  # as a killed process does
    sent, names = send_waiting(place / "run/tracking")
    assert sent == 2
    run = client_of(place).get_run(names["run run"])
    assert run.data.params == {"lr": "1"} and run.data.metrics == {"loss": 2.0}


def test_a_queue_is_not_sent_to_an_mlflow_without_its_run(
    make: Make, place: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = make()
    all_sent(tracker)
    with monkeypatch.context() as patch:
        no_waits(patch)
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        tracker.log_metrics(0, {"a": 1.0})
        assert tracker.end() == 2
    (place / "other").mkdir()
    shutil.copy(database, place / "other")
    with pytest.raises(UserError, match=f"set tracking.uri to where run {tracker.run_id} was"):
        send_waiting(place / "run/tracking", f"sqlite:///{place}/other/mlflow.db")
    assert not (place / "run/tracking/refused.jsonl").exists()
    assert send_waiting(place / "run/tracking")[0] == 2


def test_files_that_cannot_be_kept_let_everything_else_go_first(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of files that wants a package which is not there, or credentials."""
    (place / "mine.txt").write_text("mine")

    def fail(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    tracker = make()
    ledger, network = tracker._ledger, nn.Sequential(nn.Linear(3, 2))
    with monkeypatch.context() as patch:
        no_waits(patch)
        patch.setattr(MlflowClient, "log_artifact", fail)
        patch.setattr(MlflowClient, "log_model_artifacts", fail)
        tracker.log_artifact(place / "mine.txt")
        tracker.log_metrics(0, {"a": 1.0})
        ledger.model("run", network, torch.zeros(2, 3))
        ledger.register("run", "files", "best")
        tracker.log_metrics(1, {"a": 2.0})
        assert tracker.end() == 3
    assert history(place, tracker.run_id, "a") == [(0, 1.0), (1, 2.0)]
    client = MlflowClient(*[f"sqlite:///{place}/mlflow.db"] * 2)  # and its registry
    assert client.get_run(tracker.run_id or "").info.status == "FINISHED"
    assert send_waiting(place / "run/tracking")[0] == 3
    assert [f.path for f in client.list_artifacts(tracker.run_id or "")] == ["mine.txt"]
    assert client.get_model_version_by_alias("files", "best").run_id == tracker.run_id
    assert not (place / "run/tracking/refused.jsonl").exists()
