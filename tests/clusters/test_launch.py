"""`ray up` with the shipped file for machines one has, jobs, `ray down`: for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import machines

WHY_NOT = machines.missing()
pytestmark = pytest.mark.timeout(900)  # three machines are set up one after the other


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    done = subprocess.run(
        [*machines.UNSHARE, sys.executable, "-m", "tests.clusters.launch"],
        cwd=machines.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_machine_is_never_this_one() -> None:
    """Outside of namespaces of its own the program refuses, before it has touched anything."""
    mounts = Path("/proc/self/mounts").read_text()
    with pytest.raises(RuntimeError, match="not alone"):
        machines.isolate()
    assert Path("/proc/self/mounts").read_text() == mounts


@pytest.mark.long
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_up_job_down(launched: dict[str, Any]) -> None:
    job = launched["job"]
    assert "step 40/40" in job and "succeeded" in job
    assert "run directory: /home/ubuntu/runs/first" in job
    assert launched["state"]["status"] == "finished"
    assert {"config.yaml", "checkpoints", "metrics.jsonl", "spans.jsonl"} <= set(launched["files"])
    assert launched["left"] == []  # on the head; workers follow within a minute


@pytest.mark.long
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_jobs_want_the_token(launched: dict[str, Any]) -> None:
    assert "Invalid authentication token" in launched["wrong"]


@pytest.mark.long
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_a_run_grows_and_shrinks_with_the_cluster(launched: dict[str, Any]) -> None:
    """By `ray up --no-restart`, with a worker more and with one less again."""
    (joined,) = launched["changes"]
    assert joined["what"] == "lane 2 joined: now 2"
    (incident,) = launched["incidents"]
    assert incident["lanes"] == 1
    assert incident["resumed"] > 0  # from a checkpoint, not from the beginning
    assert {loss["kind"] for loss in incident["losses"]} == {"node"}
    assert len({loss["node"] for loss in incident["losses"]}) == 1  # the other lane's node is well
