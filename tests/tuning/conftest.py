"""A database that is made once, and trackers on copies of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clock import PATIENCE
from tests.tuning.server import Server
from tuning import tracking
from tuning.tracker import Tracker
from tuning.tracking import TrackingSettings

Make = Callable[..., Tracker]

_SCRIPT = """
import sys
from pathlib import Path
from tuning.tracker import Tracker
from tuning.tracking import TrackingSettings
off = Tracker(TrackingSettings(enabled=False), Path("off"), Path("off/q"), {"a": 1}, {})
off.log_metrics(0, {"a": 1.0}); off.log_artifact("missing"); off.begin(); off.wait(); off.end()
assert off.run_id is None and not Path("off").exists() and "mlflow" not in sys.modules
settings = TrackingSettings(experiment="other")
home = Path("r\\u00e9sum\\u00e9 50%25")
tracker = Tracker(settings, home, home / "q", {"a": 1}, {})
tracker.log_metrics(0, {"a": 1.0})
assert "mlflow" not in sys.modules
tracker.wait(); assert tracker.end() == 0
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
import mlflow.telemetry.utils as utils
utils._IS_IN_CI_ENV_OR_TESTING = utils._IS_MLFLOW_DEV_VERSION = False
assert is_telemetry_disabled() and get_telemetry_client() is None
import mlflow
assert mlflow.active_run() is None
assert Path("r\\u00e9sum\\u00e9 50%25", "mlflow.db").exists()
"""


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def database(
    fresh: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give the database of the script: making one takes long, so that the tests copy it."""
    assert fresh.returncode == 0, fresh.stderr
    return tmp_path_factory.getbasetemp() / "r\u00e9sum\u00e9 50%25" / "mlflow.db"


@pytest.fixture
def place(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a database of the test's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    shutil.copy(database, tmp_path)
    return tmp_path


@pytest.fixture
def make(place: Path) -> Make:
    """Give a factory of trackers that have reached MLflow."""

    def make(
        parameters: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        queue: str = "run/tracking",
        **settings: Any,
    ) -> Tracker:
        chosen = TrackingSettings(**{"patience": PATIENCE, **settings})
        tracker = Tracker(chosen, place, place / queue, parameters or {}, tags or {}, run_id)
        try:
            tracker.wait()
        except BaseException:
            tracker.end()
            raise
        return tracker

    return make


@pytest.fixture
def server(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An MLflow server on the database of the test."""
    server = Server(place, monkeypatch)
    yield server
    server.stop()
