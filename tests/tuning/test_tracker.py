"""What a tracker wrote is read back through an MLflow client of its own."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.pytorch
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import nn

from learning.errors import UserError
from tests.tuning.conftest import Make
from tuning import courier
from tuning.sending import send_waiting
from tuning.tracker import Tracker
from tuning.tracking import TrackingSettings

SEND = MlflowClient.log_batch


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second between attempts."""
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONGEST_PAUSE", 0.02)


def _client(place: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


def _all_sent(tracker: Tracker) -> None:
    """Wait until the queue is empty."""
    sender = tracker._courier
    assert sender is not None
    with sender._state:
        assert sender._state.wait_for(lambda: not sender.spool.waiting, 60)


def _history(place: Path, run_id: str | None, name: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return [(m.step, m.value) for m in _client(place).get_metric_history(run_id, name)]


def test_run_is_read_back(make: Make, place: Path, tmp_path: Path) -> None:
    many = {f"rule.p{i}": i for i in range(250)}  # more than a call may hold
    parameters = {"optimizer.lr": 0.1, "blocks.at": ("a", "b"), "long": "x" * 7000, **many}
    tags = {"plan": "abc", "long": "y" * 9000, **{f"t{i}": "v" for i in range(120)}}
    tracker = make(parameters, tags, experiment="mine", run_name="first")
    before = time.time_ns() // 1_000_000
    tracker.log_metrics(1, {"block1/loss": 2.5, "block2/loss": 1})
    tracker.log_metrics(2, {"block1/loss": float("nan")})
    (tmp_path / "plan.json").write_text("{}")
    tracker.log_artifact(tmp_path / "plan.json", "plans")
    run_id = tracker.run_id
    assert run_id is not None and tracker.end("FAILED") == 0
    client = _client(place)
    run = client.get_run(run_id)
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.params["blocks.at"] == "('a', 'b')"
    assert run.data.params["long"] == "x" * 6000
    assert all(run.data.params[name] == str(value) for name, value in many.items())
    assert run.data.tags["plan"] == "abc"
    assert run.data.tags["long"] == "y" * 8000
    assert run.data.tags["t119"] == "v"
    assert _history(place, run_id, "block2/loss") == [(1, 1.0)]
    (metric,) = client.get_metric_history(run_id, "block2/loss")
    assert before <= metric.timestamp <= time.time_ns() // 1_000_000
    points = _history(place, run_id, "block1/loss")
    assert [str(point) for point in points] == ["(1, 2.5)", "(2, nan)"]
    assert run.info.status == "FAILED"
    assert run.info.run_name == "first"
    assert client.get_experiment(run.info.experiment_id).name == "mine"
    assert [f.path for f in client.list_artifacts(run_id, "plans")] == ["plans/plan.json"]
    files = [path.relative_to(place).parts for path in place.rglob("plan.json")]
    assert ("mlartifacts", run_id, "artifacts", "plans", "plan.json") in files


def test_no_call_is_larger_than_allowed(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow's client divides too large calls of its own accord; that of another version may not.
    calls: list[tuple[int, ...]] = []

    def spy(client: MlflowClient, run_id: str, **given: Any) -> None:
        kinds = ("metrics", "params", "tags")
        calls.append(tuple(len(given.get(kind, ())) for kind in kinds))
        SEND(client, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    many = {f"p{i}": str(i) for i in range(250)}
    tracker = make(many, dict(list(many.items())[:120]))
    described = [(0, 100, 100), (0, 100, 20), (0, 50, 0)]
    assert calls[:3] == described
    tracker.log_metrics(0, {f"m{i}": float(i) for i in range(1500)})
    tracker.end()
    assert calls[-2:] == [(1000, 0, 0), (500, 0, 0)]
    assert _history(place, tracker.run_id, "m1499") == [(0, 1499.0)]


def test_training_does_not_wait_for_a_send_that_hangs(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is written down while a call to MLflow does not come back."""
    import threading

    tracker, called, goes_on = make(), threading.Event(), threading.Event()

    def hang(client: MlflowClient, run_id: str, **given: Any) -> None:
        called.set()
        assert goes_on.wait(60)
        SEND(client, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", hang)
    tracker.log_metrics(0, {"a": 0.0})
    assert called.wait(60)
    for step in range(1, 100):
        tracker.log_metrics(step, {"a": float(step)})
    lines = (place / "run/tracking/000001.jsonl").read_text().splitlines()
    assert sum('"metrics"' in line for line in lines) == 100
    goes_on.set()
    assert tracker.end() == 0
    assert _history(place, tracker.run_id, "a") == [(i, float(i)) for i in range(100)]


def test_what_fails_waits_on_disk_and_is_sent_later(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = make(patience=0.2)
    _all_sent(tracker)

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("http://me:secret@host is gone")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(MlflowClient, "log_batch", fail)
        tracker.log_metrics(0, {"a": 1.0})
        tracker.log_metrics(1, {"a": 2.0})
        left = tracker.end("FINISHED")
    assert left == 3  # with the end
    said = [r.message for r in caplog.records if r.name == "tuning.courier"]
    assert len(said) == 1 and "(http://me:***@host is gone): training goes on" in said[0]
    assert _client(place).get_run(tracker.run_id or "").info.status == "RUNNING"
    assert _history(place, tracker.run_id, "a") == []
    sent, names = send_waiting(place / "run/tracking")
    assert sent == 3 and names["run run"] == tracker.run_id
    assert _history(place, tracker.run_id, "a") == [(0, 1.0), (1, 2.0)]
    assert _client(place).get_run(tracker.run_id or "").info.status == "FINISHED"
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
    assert _history(place, tracker.run_id, "b") == [(0, 1.0)]
    assert len(_history(place, tracker.run_id, "a")) == 2


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
    client = _client(place)
    assert [f.path for f in client.list_artifacts(tracker.run_id or "")] == ["mine.txt"]
    assert _history(place, tracker.run_id, "loss") == [(0, 1.0), (2, 1.0)]


def test_resumed_run_goes_on(make: Make, place: Path) -> None:
    first = make({"lr": 0.1, "steps": 10}, {"host": "a"})
    first.log_metrics(1, {"loss": 2.0})
    first.end("KILLED")
    second = make({"lr": 0.1, "steps": 20, "new": 1}, {"host": "b"}, run_id=first.run_id)
    client, run_id = _client(place), second.run_id
    assert run_id is not None and run_id == first.run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    second.log_metrics(2, {"loss": 1.0})
    second.end()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "steps": "10", "new": "1"}
    assert run.data.tags["resumed.steps"] == "20"
    assert "resumed.lr" not in run.data.tags
    assert run.data.tags["host"] == "b"
    assert _history(place, run_id, "loss") == [(1, 2.0), (2, 1.0)]


def test_a_queue_in_which_mlflow_was_never_reached_starts_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(TrackingSettings(), place, place / "run/tracking", {"lr": 1}, {})
    tracker.log_metrics(3, {"loss": 2.0})
    tracker._courier.spool._lock.close()  # type: ignore[union-attr]  # as a killed process does
    sent, names = send_waiting(place / "run/tracking")
    assert sent == 2
    run = _client(place).get_run(names["run run"])
    assert run.data.params == {"lr": "1"} and run.data.metrics == {"loss": 2.0}


def test_settings_win_over_the_environment(
    make: Make, place: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("environment", "settings"):
        (place / name).mkdir()
        shutil.copy(database, place / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/environment/mlflow.db")
    tracker = make()
    assert tracker.uri == f"sqlite:///{place}/environment/mlflow.db"
    tracker.end()
    tracker = make(uri=f"sqlite:///{place}/settings/mlflow.db", queue="other/tracking")
    tracker.log_artifact(__file__)
    assert tracker.uri == f"sqlite:///{place}/settings/mlflow.db"
    tracker.end()
    assert list((place / "settings" / "mlartifacts").rglob("test_tracker.py"))


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("nothing://there", "nothing://there"),
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_unusable_uri_is_refused_soon(make: Make, uri: str, what: str) -> None:
    before, started = os.environ.copy(), time.monotonic()
    with pytest.raises(UserError, match=what) as caught:
        make(uri=uri)
    assert time.monotonic() - started < 5
    assert "set tracking.uri to" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not {n for n in os.environ if "HTTP_REQUEST" in n and n not in before}


def test_file_that_is_no_database_is_refused(make: Make, place: Path) -> None:
    (place / "notes").write_text("not a database, but long enough to look at\n" * 9)
    with pytest.raises(UserError, match="file is not a database"):
        make(uri=f"sqlite:///{place}/notes")


def test_unknown_run_is_refused(make: Make, place: Path) -> None:
    with pytest.raises(UserError, match=f"where run {'0' * 32} was started"):
        make(run_id="0" * 32)


def test_a_queue_is_not_sent_to_an_mlflow_without_its_run(
    make: Make, place: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = make(patience=0)
    _all_sent(tracker)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        tracker.log_metrics(0, {"a": 1.0})
        assert tracker.end() == 2
    (place / "other").mkdir()
    shutil.copy(database, place / "other")
    with pytest.raises(UserError, match=f"set tracking.uri to where run {tracker.run_id} was"):
        send_waiting(place / "run/tracking", f"sqlite:///{place}/other/mlflow.db")
    assert not (place / "run/tracking/refused.jsonl").exists()
    assert send_waiting(place / "run/tracking")[0] == 2


def test_a_model_is_read_back_without_this_project(make: Make, place: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].eval()  # of mixed modes: they stay
    tracker = make()
    tracker.log_model(model, torch.zeros(1, 2, 3), step=7)
    assert [m.training for m in model] == [True, True, False, True] and model.training
    assert tracker.end() == 0 and not (place / "run/tracking/models").exists()
    client = _client(place)
    run = client.get_run(tracker.run_id or "")
    (found,) = client.search_logged_models([run.info.experiment_id])
    assert found.source_run_id == run.info.run_id and str(found.status) == "READY"
    assert [(o.model_id, o.step) for o in run.outputs.model_outputs] == [(found.model_id, 7)]
    files = {p.name for p in Path(found.artifact_location.removeprefix("file://")).rglob("*")}
    assert "model.pt2" in files and not {f for f in files if f.endswith((".pth", ".pkl"))}
    loaded = mlflow.pyfunc.load_model(found.artifact_location)
    signature = loaded.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 2, 3)
    assert signature.outputs.inputs[0].shape == (-1, 3)
    assert loaded.metadata.model_id == found.model_id
    x = torch.randn(5, 2, 3)
    expected = model.eval()(x).detach()
    torch.testing.assert_close(torch.from_numpy(loaded.predict(x.numpy())), expected)
    network = mlflow.pytorch.load_model(found.artifact_location)
    torch.testing.assert_close(network(x), expected)


def test_a_model_that_cannot_be_exported_is_left_out_with_a_warning(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    tracker = make()
    with caplog.at_level(logging.WARNING):
        tracker.log_model(nn.Sequential(Branches()), torch.zeros(2, 3))
    assert "the network cannot be exported for MLflow" in caplog.text
    assert tracker.end() == 0
    assert list(place.rglob("model.pt2")) == []


def test_fresh_process_is_quiet_lazy_and_without_telemetry(
    fresh: subprocess.CompletedProcess[str],
) -> None:
    assert (fresh.returncode, fresh.stdout, fresh.stderr) == (0, "", "")
