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
from mlflow.tracking import MlflowClient
from torch import nn

from learning.errors import UserError
from tests.tuning.conftest import Make
from tests.tuning.reading import SEND, client_of, history
from tuning import courier


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second between attempts."""
    monkeypatch.setattr(courier, "BATCH_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONGEST_PAUSE", 0.02)


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
    client = client_of(place)
    run = client.get_run(run_id)
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.params["blocks.at"] == "('a', 'b')"
    assert run.data.params["long"] == "x" * 6000
    assert all(run.data.params[name] == str(value) for name, value in many.items())
    assert run.data.tags["plan"] == "abc"
    assert run.data.tags["long"] == "y" * 8000
    assert run.data.tags["t119"] == "v"
    assert history(place, run_id, "block2/loss") == [(1, 1.0)]
    (metric,) = client.get_metric_history(run_id, "block2/loss")
    assert before <= metric.timestamp <= time.time_ns() // 1_000_000
    points = history(place, run_id, "block1/loss")
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
    assert history(place, tracker.run_id, "m1499") == [(0, 1499.0)]


def test_resumed_run_goes_on(make: Make, place: Path) -> None:
    first = make({"lr": 0.1, "steps": 10}, {"host": "a"})
    first.log_metrics(1, {"loss": 2.0})
    first.end("KILLED")
    second = make({"lr": 0.1, "steps": 20, "new": 1}, {"host": "b"}, run_id=first.run_id)
    client, run_id = client_of(place), second.run_id
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
    assert history(place, run_id, "loss") == [(1, 2.0), (2, 1.0)]


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
def test_unusable_uri_is_refused_soon(
    make: Make, uri: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, slept = os.environ.copy(), list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(UserError, match=what) as caught:
        make(uri=uri)
    assert sum(slept) < 5  # between attempts: by itself MLflow makes eight, two minutes long
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


def test_a_model_is_read_back_without_this_project(make: Make, place: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].eval()  # of mixed modes: they stay
    tracker = make()
    tracker.log_model(model, torch.zeros(1, 2, 3), step=7)
    assert [m.training for m in model] == [True, True, False, True] and model.training
    assert tracker.end() == 0 and not (place / "run/tracking/models").exists()
    client = client_of(place)
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
