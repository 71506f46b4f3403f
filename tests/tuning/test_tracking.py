"""What a tracker wrote is read back through an MLflow client of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url

from learning.errors import UserError
from tuning import tracking
from tuning.tracking import Tracker, TrackingSettings, check_place

Make = Callable[..., Tracker]


_SCRIPT = """
import sys
from pathlib import Path
from tuning.tracking import Tracker, TrackingSettings
off = Tracker(TrackingSettings(enabled=False), Path("off"), {"a": 1}, {})
off.log_metrics(0, {"a": 1.0}); off.log_artifact("missing"); off.flush(); off.end()
assert off.run_id is None and not Path("off").exists() and "mlflow" not in sys.modules
settings = TrackingSettings(experiment="other")
tracker = Tracker(settings, Path("r\\u00e9sum\\u00e9 50%25"), {"a": 1}, {})
tracker.log_metrics(0, {"a": 1.0}); tracker.end()
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
import mlflow.telemetry.utils as utils
utils._IS_IN_CI_ENV_OR_TESTING = utils._IS_MLFLOW_DEV_VERSION = False
assert is_telemetry_disabled() and get_telemetry_client() is None
import mlflow
assert mlflow.active_run() is None
assert Path("r\\u00e9sum\\u00e9 50%25", "mlflow.db").exists()
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Run the script above in a process of its own."""
    drop = {"PYTEST_CURRENT_TEST", "CI", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"}
    env = {name: text for name, text in os.environ.items() if name not in drop | {"DO_NOT_TRACK"}}
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path_factory.getbasetemp(),
        env={**env, "PYTHONPATH": str(Path(tracking.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def database(
    fresh: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give the database of the script: making one takes long, so that the tests copy it."""
    assert fresh.returncode == 0, fresh.stderr
    return tmp_path_factory.getbasetemp() / "r\u00e9sum\u00e9 50%25" / "mlflow.db"


@pytest.fixture
def make(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Give a factory of trackers on a database of the test's own in `tmp_path`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path)

    def make(
        parameters: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        **settings: Any,
    ) -> Tracker:
        return Tracker(TrackingSettings(**settings), tmp_path, parameters or {}, tags or {}, run_id)

    return make


def _read(tracker: Tracker) -> tuple[MlflowClient, str]:
    assert tracker.run_id is not None
    return MlflowClient(tracking_uri=tracker.uri), tracker.run_id


def _history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    client, run_id = _read(tracker)
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_run_is_read_back(make: Make, tmp_path: Path) -> None:
    many = {f"rule.p{i}": i for i in range(250)}  # more than a call may hold
    parameters = {"optimizer.lr": 0.1, "blocks.at": ("a", "b"), "long": "x" * 7000, **many}
    tags = {"plan": "abc", "long": "y" * 9000, **{f"t{i}": "v" for i in range(120)}}
    tracker = make(parameters, tags, experiment="mine", run_name="first")
    before = time.time_ns() // 1_000_000
    tracker.log_metrics(1, {"block1/loss": 2.5, "block2/loss": 1})
    tracker.log_metrics(2, {"block1/loss": float("nan")})
    (tmp_path / "plan.json").write_text("{}")
    tracker.log_artifact(tmp_path / "plan.json", "plans")
    tracker.end("FAILED")
    client, run_id = _read(tracker)
    run = client.get_run(run_id)
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.params["blocks.at"] == "('a', 'b')"
    assert run.data.params["long"] == "x" * 6000
    assert all(run.data.params[name] == str(value) for name, value in many.items())
    assert run.data.tags["plan"] == "abc"
    assert run.data.tags["long"] == "y" * 8000
    assert run.data.tags["t119"] == "v"
    assert _history(tracker, "block2/loss") == [(1, 1.0)]
    (metric,) = client.get_metric_history(run_id, "block2/loss")
    assert before <= metric.timestamp <= time.time_ns() // 1_000_000
    assert [str(point) for point in _history(tracker, "block1/loss")] == ["(1, 2.5)", "(2, nan)"]
    assert run.info.status == "FAILED"
    assert run.info.run_name == "first"
    assert client.get_experiment(run.info.experiment_id).name == "mine"
    assert [f.path for f in client.list_artifacts(run_id, "plans")] == ["plans/plan.json"]
    files = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("plan.json")]
    assert ("mlartifacts", run_id, "artifacts", "plans", "plan.json") in files


def test_metrics_wait_in_the_buffer(make: Make) -> None:
    tracker = make()
    tracker.log_metrics(0, {"a": 1.0})
    assert _history(tracker, "a") == []
    tracker.flush()
    assert _history(tracker, "a") == [(0, 1.0)]
    tracker.log_metrics(1, {f"m{i}": 0.0 for i in range(tracking.BUFFERED_METRICS - 1)})
    assert _history(tracker, "m0") == []
    tracker.log_metrics(1, {"last": 0.0})
    assert _history(tracker, "m0") == [(1, 0.0)]
    tracker.log_metrics(2, {"a": 2.0})
    assert _history(tracker, "a") == [(0, 1.0)]
    tracker._sent -= tracking.BUFFERED_SECONDS  # as if that time had passed
    tracker.log_metrics(3, {"a": 3.0})
    assert _history(tracker, "a") == [(0, 1.0), (2, 2.0), (3, 3.0)]


def test_no_call_is_larger_than_allowed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow's client divides too large calls of its own accord; that of another version may not.
    calls: list[tuple[int, ...]] = []
    send = MlflowClient.log_batch

    def spy(client: MlflowClient, run_id: str, **given: Any) -> None:
        kinds = ("metrics", "params", "tags")
        calls.append(tuple(len(given.get(kind, ())) for kind in kinds))
        send(client, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    many = {f"p{i}": str(i) for i in range(250)}
    tracker = make(many, dict(list(many.items())[:120]))
    tracker.log_metrics(0, {f"m{i}": float(i) for i in range(1500)})
    assert calls == [(0, 100, 100), (0, 100, 20), (0, 50, 0), (1000, 0, 0), (500, 0, 0)]
    assert _history(tracker, "m0") == [(0, 0.0)]
    assert _history(tracker, "m1499") == [(0, 1499.0)]


def test_failed_send_is_raised_and_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = make()
    send = MlflowClient.log_batch

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("database is locked")

    tracker.log_metrics(0, {"a": 1.0})
    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    with pytest.raises(MlflowException, match="locked"):
        tracker.flush()
    with pytest.raises(MlflowException, match="locked"):
        tracker.end("KILLED")
    client, run_id = _read(tracker)
    assert client.get_run(run_id).info.status == "KILLED"
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    tracker.flush()
    assert _history(tracker, "a") == [(0, 1.0)]


def test_resumed_run_goes_on(make: Make) -> None:
    first = make({"lr": 0.1, "steps": 10}, {"host": "a"})
    first.log_metrics(1, {"loss": 2.0})
    first.end("KILLED")
    second = make({"lr": 0.1, "steps": 20, "new": 1}, {"host": "b"}, run_id=first.run_id)
    client, run_id = _read(second)
    assert run_id == first.run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    second.log_metrics(2, {"loss": 1.0})
    second.end()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "steps": "10", "new": "1"}
    assert run.data.tags["resumed.steps"] == "20"
    assert "resumed.lr" not in run.data.tags
    assert run.data.tags["host"] == "b"
    assert _history(second, "loss") == [(1, 2.0), (2, 1.0)]


def test_settings_win_over_the_environment(
    make: Make, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("environment", "settings"):
        (tmp_path / name).mkdir()
        shutil.copy(database, tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/environment/mlflow.db")
    assert make().uri == f"sqlite:///{tmp_path}/environment/mlflow.db"
    tracker = make(uri=f"sqlite:///{tmp_path}/settings/mlflow.db")
    tracker.log_artifact(__file__)
    assert tracker.uri == f"sqlite:///{tmp_path}/settings/mlflow.db"
    assert list((tmp_path / "settings" / "mlartifacts").rglob("test_tracking.py"))


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


def test_file_that_is_no_database_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database, but long enough to look at\n" * 9)
    with pytest.raises(UserError, match="file is not a database"):
        make(uri=f"sqlite:///{tmp_path}/notes")


def test_unknown_run_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=f"where run {'0' * 32} was started"):
        make(run_id="0" * 32)


def test_fresh_process_is_quiet_lazy_and_without_telemetry(
    fresh: subprocess.CompletedProcess[str],
) -> None:
    assert (fresh.returncode, fresh.stdout, fresh.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_place_is_checked_without_mlflow(tmp_path: Path, uri: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        check_place(TrackingSettings(uri=uri), tmp_path)
    assert "set tracking.uri to" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_place_that_may_do_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_place(TrackingSettings(enabled=enabled), tmp_path)
    assert (tmp_path / "mlflow.db").exists() is enabled


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///a/b.db", "sqlite:////tmp/x%2520y.db?timeout=3", "sqlite+pysqlite:///c%3F.db",
     "sqlite://", "sqlite:///:memory:", "postgresql://host/name", "http://host/sqlite:///x"],
)  # fmt: skip
def test_sqlite_files_are_those_of_sqlalchemy(uri: str) -> None:
    name = make_url(uri).database if uri.startswith("sqlite") else None
    expected = Path(name) if name and name != ":memory:" else None
    assert tracking._sqlite_file(uri) == expected
