"""Where runs are tracked, and which places are refused before MLflow is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from learning.errors import UserError
from tuning import tracking
from tuning.tracking import TrackingSettings, check_place, impatient


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("sqlite:////proc/x/y.db", "/proc"),
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
    check_place(TrackingSettings(enabled=enabled), tmp_path / "not/made/yet")
    assert list(tmp_path.iterdir()) == []  # what asks may yet be refused for something else


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///a/b.db", "sqlite:////tmp/x%2520y.db?timeout=3", "sqlite+pysqlite:///c%3F.db",
     "sqlite://", "sqlite:///:memory:", "postgresql://host/name", "http://host/sqlite:///x"],
)  # fmt: skip
def test_sqlite_files_are_those_of_sqlalchemy(uri: str) -> None:
    name = make_url(uri).database if uri.startswith("sqlite") else None
    expected = Path(name) if name and name != ":memory:" else None
    assert tracking.sqlite_file(uri) == expected


def test_limits_are_taken_back_and_those_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    retries, timeout = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(retries, raising=False)
    monkeypatch.setenv(timeout, "3")
    with impatient():
        with impatient():
            assert (os.environ[retries], os.environ[timeout]) == ("1", "3")
        assert os.environ[retries] == "1"
    assert retries not in os.environ and os.environ[timeout] == "3"
