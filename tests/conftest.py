"""Fixtures of all tests: one local Ray, one thread, an empty HOME."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from hypothesis import settings

from tests.prefork import launcher

torch.set_num_threads(1)
# A shell without a terminal ignores these for what it starts in the background, tests among it.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
settings.register_profile("any processor", deadline=None)  # no verdict depends on its pace
settings.load_profile("any processor")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray and caches write under HOME: give them one of their own."""
    directory = tmp_path_factory.mktemp("home")
    before = {name: os.environ.get(name) for name in ("HOME", "XDG_CACHE_HOME", "RAY_AUTH_MODE")}
    os.environ["HOME"] = str(directory)
    os.environ.pop("XDG_CACHE_HOME", None)
    yield directory
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def ray_cluster(home: Path) -> Iterator[None]:
    """A local Ray with four logical CPUs, shared by all tests that need one."""
    with launcher(home) as python:
        with mock.patch.object(sys, "executable", python):
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=512 * 2**20,
                _node_ip_address="127.0.0.1",
            )
        yield
        ray.shutdown()


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and waiting for the disk is slow."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
