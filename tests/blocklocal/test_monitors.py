"""Ray's monitors in a local cluster give way to what trains."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from blocklocal.monitors import NICE, SCRIPTS, giving_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux lists a thread's children")


@contextmanager
def running(script: Path) -> Iterator[int]:
    """The process of a script that waits for the end of its input, started as Ray does."""
    script.write_text("import sys; print(flush=True); sys.stdin.read()")
    command = [sys.executable, "-u", str(script), "--gcs-address=127.0.0.1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
        process.communicate()


def priority(number: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, number)


def test_only_the_monitors_give_way(tmp_path: Path) -> None:
    own = priority(0)
    with ExitStack() as stack:
        (tmp_path / "earlier").mkdir()
        before = stack.enter_context(running(tmp_path / "earlier/monitor.py"))
        with giving_way():
            monitors = [stack.enter_context(running(tmp_path / name)) for name in sorted(SCRIPTS)]
            other = stack.enter_context(running(tmp_path / "dashboard.py"))
        assert [priority(number) for number in monitors] == [max(own, NICE)] * 2
        assert [priority(number) for number in (0, before, other)] == [own] * 3


def test_a_start_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(ValueError, match="no room"), giving_way():
        raise ValueError("no room")
    assert "monitors" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("ray_cluster")
def test_ray_starts_what_is_looked_for() -> None:
    """Ray's own names, which no test of ours can hold still."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    words = b"\0".join(Path(f"/proc/{number}/cmdline").read_bytes() for number in children)
    found = {Path(os.fsdecode(word)).name for word in words.split(b"\0")}
    assert found >= SCRIPTS
