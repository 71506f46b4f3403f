"""Goodput and recovery of a punished run: their arithmetic by hand, and when it ends."""

from __future__ import annotations

import pytest

from benchmarks import killer, punishing, survival
from benchmarks.killer import Kill
from benchmarks.survival import WARMUP, Watch
from tests.benchmarks.helpers import lost


def test_goodput_counts_new_steps_while_there_are_kills() -> None:
    """A step each second, but none for four seconds of the ten: 60 % of one a second."""
    times = [100.0 + t for t in (-1, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13)]
    watch = Watch(times=times)
    found = punishing.figures(watch, 100.0, [], 10.0, rate=1.0)
    assert (found["new_steps"], found["seconds"], found["goodput"]) == (6, 10.0, 0.6)
    assert found["new_steps_by_second"] == [0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_the_last_kill_counts_until_it_is_made_up_for() -> None:
    times = [100.0 + t for t in (0, 1, 2, 3, 12, 13, 14)]
    incident = lost(7, 104.0, noticing=0.2, replaying=1.0)
    watch = Watch(times=times, incidents=[(112.0, incident)])
    found = punishing.figures(watch, 100.0, [Kill(103.5, "block", (7,))], 5.0, rate=1.0)
    assert found["seconds"] == 12.0 and found["new_steps"] == 4
    assert found["kills"][0]["at"] == 3.5 and found["kills"][0]["recovery"] == 8.5
    assert found["incidents"][0]["over"] == 12.0


def test_a_run_that_ends_before_its_kills_counts_until_its_end() -> None:
    found = punishing.figures(Watch(times=[100.0, 101.0, 102.0]), 100.0, [], 60.0, rate=2.0)
    assert found["seconds"] == 2.0 and found["goodput"] == 0.5


def test_recovery_begins_with_the_death_and_is_split_by_phase() -> None:
    seconds = {"noticing": 9.0, "ending": 0.5, "starting": 2.0, "restoring": 0.25, "replaying": 1.0}
    found = punishing.recovery(Kill(9.75, "block", (7,)), [(13.75, lost(7, 10.0, **seconds))])
    assert found["recovery"] == 4.0
    assert found["phases"] == {**seconds, "noticing": 0.25}


def test_a_loss_that_another_overtakes_is_over_with_that() -> None:
    first = lost(7, 10.0, noticing=0.1, ending=0.1)  # no step came after it
    second = lost(8, 12.0, noticing=0.1, replaying=1.0)
    incidents = [(12.0, first), (16.0, second)]
    found = punishing.recovery(Kill(9.5, "block", (7,)), incidents)
    assert found == {"recovery": 6.5, "phases": {}}
    assert punishing.recovery(Kill(11.75, "block", (8,)), incidents)["recovery"] == 4.25


def test_a_kill_within_a_recovery_is_over_with_it() -> None:
    """A process that is killed before it said who it is has the number 0 among the losses."""
    incident = lost(0, 10.0, noticing=0.1, replaying=1.0)
    found = punishing.recovery(Kill(11.0, "block", (8,)), [(16.0, incident)])
    assert found == {"recovery": 5.0, "phases": {}}


def test_a_kill_of_nobodys_actor_has_no_recovery() -> None:
    incidents = [(13.0, lost(7, 10.0, replaying=1.0))]
    found = punishing.recovery(Kill(5.0, "block", (8,)), incidents)
    assert found == {"recovery": None, "phases": {}}


def test_a_punished_run_ends_with_a_snapshot_after_its_kills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(survival.time, "time", lambda: now[0])
    thread = killer.Killer([], 0)
    watch = punishing.Punished(killer=thread, kills=1, seconds=5.0, every=10)

    def steps_until(last: int, seconds: float) -> None:
        now[0] += seconds
        for step in range(len(watch.times), last):
            watch.stepped(step, {})

    steps_until(WARMUP + 5, 1.0)
    thread.join(300)
    assert thread.began == 1.0
    steps_until(WARMUP + 10, 6.0)  # its time is over, but not its kill
    thread.kills.append(Kill(7.0, "block", (7,)))
    steps_until(WARMUP + 15, 1.0)  # killed, and nobody knows it yet
    watch.recovered(lost(7, 7.5, noticing=0.5, replaying=0.1))
    steps_until(WARMUP + 26, 1.0)  # from step 35 on it looks for a snapshot: within ten steps
    with pytest.raises(survival.EnoughError):
        watch.stepped(len(watch.times), {})
    assert len(watch.times) == WARMUP + 27


def test_a_punished_run_does_not_wait_for_ever_for_a_kill_that_hit_nobody() -> None:
    thread = killer.Killer([], 0)
    watch = punishing.Punished(killer=thread, kills=1, seconds=5.0, every=10)
    thread.began, thread.kills = 1.0, [Kill(3.0, "block", (7,))]
    watch.times = [3.0 + punishing.KILL_SECONDS]
    assert not watch._is_over()
    watch.times.append(3.5 + punishing.KILL_SECONDS)
    assert watch._is_over()
