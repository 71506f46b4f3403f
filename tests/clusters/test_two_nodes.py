"""What needs a cluster of two nodes: the doctor, and where a sweep's trials are."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the program of two nodes says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.clusters.two_nodes"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_doctor_of_two_nodes(found: dict[str, Any]) -> None:
    found = found["doctor"]
    sees = torch.cuda.is_available()
    assert found["code"] == (0 if sees else 1), found["out"]
    failed = [line for line in found["out"].splitlines() if "FAILED" in line]
    assert len(failed) == (0 if sees else 1)
    assert sees or "Ray counts 1 and PyTorch sees none: install an NVIDIA driver" in failed[0]
    lines = [line.split(": ")[0] for line in found["out"].splitlines()]
    assert lines.count("nodes") == 1 and "nodes: ok  2\n" in found["out"]
    for what in ("node", "object store", "clock", "storage"):
        assert sum(line.startswith(f"{what} 127.") for line in lines) == 2, what
    assert sum(line.startswith("link 127.") for line in lines) == 2


def test_trials_write_where_the_sweep_is(found: dict[str, Any]) -> None:
    """Each has all CPUs of a node for its block, and its own process is beside the driver."""
    found = found["sweep"]
    assert found["code"] == 0, found["out"]
    assert found["trials"] == [["finished", ""]] * 2
    assert found["wrote on"] == [found["driver on"]]
