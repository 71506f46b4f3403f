"""Clusters that will not have this process: one sentence each, with what to do."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from blocklocal import clusters
from tests.blocklocal.helpers import only_sentence, refused

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def connect(address: str, **environment: str) -> subprocess.Popen[str]:
    """The doctor in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "blocklocal.launch", "doctor", "--address", address],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("ray_cluster")
def test_no_token_and_another_one(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    (tmp_path / "token").write_text("another")
    copy = "copy ~/.ray/auth_token from a machine that may use it, or set RAY_AUTH_TOKEN"
    cases = {
        f"wants a token, and this process has none: {copy}": {"HOME": str(tmp_path)},
        f"refuses the token of RAY_AUTH_TOKEN: {copy}": {"RAY_AUTH_TOKEN": "another"},
        f"refuses the token of {tmp_path}/token: {copy}": {
            "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/token"
        },
        "does not let this process in, which shows no token because RAY_AUTH_MODE = 'disabled': "
        f"unset it, and {copy}": {"RAY_AUTH_MODE": "disabled"},
    }
    started = [
        connect(address, **{"RAY_AUTH_MODE": "token", **changed}) for changed in cases.values()
    ]
    for said, process in zip(cases, started, strict=True):
        _, error = process.communicate(timeout=600)
        where = f"the Ray cluster at engine.address = '{address}'"
        assert only_sentence(error) == f"{where} {said}"
        assert process.returncode == 2


def test_a_port_that_is_not_of_rays_head(capsys: Capture, fails: list[Exception]) -> None:
    fails.append(ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:8265"))
    said = refused(capsys, "doctor", "--address", "10.0.0.1:8265")
    assert said.endswith("does not speak as Ray's head does: name the port of the head")


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What `ray.init` raises; other tests may share a Ray."""
    errors: list[Exception] = []

    def init(**_: object) -> None:
        raise errors[0]

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(clusters, "_knock", lambda address: None)
    return errors


def test_another_version(capsys: Capture, fails: list[Exception]) -> None:
    there = {"ray_version": "2.55.1", "python_version": "3.12.3"}
    with pytest.raises(RuntimeError) as caught:
        check_version_info(there, "node 10.0.0.2")  # as Ray does when it connects
    fails.append(caught.value)
    assert refused(capsys, "doctor", "--address", "10.0.0.1:6379") == (
        "the Ray cluster at engine.address = '10.0.0.1:6379' has Ray 2.55.1 and Python 3.12.3, and "
        f"this process Ray {ray.__version__} and Python {platform.python_version()}: install the "
        "same here and there"
    )


def test_a_refusal_of_many_lines_is_one_sentence(capsys: Capture, fails: list[Exception]) -> None:
    fails.append(ConnectionError("Could not find any\n  running Ray instance."))
    said = refused(capsys, "train", "engine.address=auto")
    assert "(Could not find any running Ray instance.): start one" in said
