"""The killer: when and whom it kills, and that it ends; a deadline ends what does not."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import deadline, killer


@given(kills=st.integers(1, 50), between=st.floats(0.1, 100), seed=st.integers(0, 9))
def test_moments_are_those_of_the_seed_and_within_the_time(
    kills: int, between: float, seed: int
) -> None:
    found = killer.moments(kills, between, seed)
    assert found == sorted(found) == killer.moments(kills, between, seed)
    assert len(found) == kills and found[0] >= 0 and found[-1] <= kills * between


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def test_a_killer_kills_each_victim_once_and_ends() -> None:
    processes = [sleeper() for _ in range(3)]
    try:
        victims = [[psutil.Process(process.pid)] for process in processes]
        # It is also told of those that it has killed, as long as nobody has waited for them.
        thread = killer.Killer([0.0, 0.01, 0.02], 0, lambda: victims)
        thread.start()
        thread.join(300)
        assert not thread.is_alive()
        assert {kill.processes for kill in thread.kills} == {(p.pid,) for p in processes}
        assert [process.wait(300) for process in processes] == [-9, -9, -9]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_killer_without_victims_waits_until_it_is_stopped() -> None:
    asked = threading.Event()

    def nobody() -> list[killer.Victim]:
        asked.set()
        return []

    thread = killer.Killer([0.0], 0, nobody)
    thread.stop()  # before it is started: nothing to wait for
    thread = killer.Killer([0.0], 0, nobody)
    thread.start()
    assert asked.wait(300)
    thread.stop()
    assert not thread.is_alive() and thread.kills == []


def test_a_victim_that_has_ended_by_itself_is_no_kill() -> None:
    process = sleeper()
    victim = psutil.Process(process.pid)
    process.kill()
    process.wait()
    assert killer.kill_one([[victim]], random.Random(0)) is None
    assert killer.kill_one([], random.Random(0)) is None


def test_a_wait_for_ever_ends_with_what_was_done(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(TimeoutError, match="step 3 of 5: not done within 0 s"),
        deadline.deadline(0.1, lambda: "step 3 of 5"),
    ):
        threading.Event().wait()
    assert "most recent call first" in capfd.readouterr().err


def test_an_interrupt_before_the_deadline_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), deadline.deadline(60, lambda: "it"):
        raise KeyboardInterrupt
