"""The benchmarks of losses: their arithmetic by hand, that they end, and tiny runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.operations import Span
from benchmarks import (
    deadline,
    endurance,
    killer,
    measuring,
    punisher,
    punisher_page,
    punishing,
    records,
    snapshots,
    survival,
)
from benchmarks.killer import Kill
from benchmarks.survival import WARMUP, Watch
from orchestrator.incidents import Incident
from orchestrator.losses import Loss


def lost(process: int, at: float, **seconds: float) -> Incident:
    """An incident noticed at `at` in which one process was lost."""
    loss = Loss("block1", "actor", "node", process, "killed")
    return Incident(1, at, 50, [loss], resumed=40, seconds=seconds)


# --- goodput and recovery ---------------------------------------------------------------------


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
    thread.join(20)
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


def test_rate_is_from_the_end_of_the_warm_up_to_the_last_word() -> None:
    watch = Watch()
    for step in range(WARMUP + 10):
        watch.worked("block1", [Span("U", step, 0, 0, 1, 0, 0)])
        watch.worked("block2", [Span("F", step, 0, 0, 5, 0, 0)])
        watch.worked("block2", [Span("U", step, 0, 0, (step + 1) * 10**9, 0, 0)])
    watch.worked("block2", [Span("U", WARMUP - 1, 0, 0, 10**12, 0, 0)])  # done again
    watch.times = [0.0] * (WARMUP + 9) + [WARMUP + 20.0]
    assert watch.rate() == 0.5


def test_states_are_compared_by_bits_and_names() -> None:
    state = {"block1": {"w": torch.tensor([1.0, 2.0])}, "block2": {"w": torch.tensor([0.0])}}
    assert survival.same_bits(state, {n: {"w": t["w"].clone()} for n, t in state.items()})
    assert not survival.same_bits(state, {**state, "block2": {"w": torch.tensor([1e-30])}})
    assert not survival.same_bits(state, {**state, "block2": {"v": torch.tensor([0.0])}})
    assert not survival.same_bits(state, {"block1": state["block1"]})


# --- kills --------------------------------------------------------------------------------------


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
        thread.join(20)
        assert not thread.is_alive()
        assert {kill.processes for kill in thread.kills} == {(p.pid,) for p in processes}
        assert [process.wait(20) for process in processes] == [-9, -9, -9]
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
    assert asked.wait(20)
    thread.stop()
    assert not thread.is_alive() and thread.kills == []


def test_a_victim_that_has_ended_by_itself_is_no_kill() -> None:
    process = sleeper()
    victim = psutil.Process(process.pid)
    process.kill()
    process.wait()
    assert killer.kill_one([[victim]], random.Random(0)) is None
    assert killer.kill_one([], random.Random(0)) is None


# --- the deadline -------------------------------------------------------------------------------


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


# --- slopes -------------------------------------------------------------------------------------


def test_slope_of_a_line_and_its_error() -> None:
    line = endurance.slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert line == (2.0, 0.0)
    bent = endurance.slope([0.0, 1.0, 2.0], [0.0, 3.0, 0.0])
    assert bent.bytes == 0.0 and bent.error == pytest.approx((6 / 1 / 2) ** 0.5)
    with pytest.raises(ValueError, match="take three"):
        endurance.slope([0.0, 1.0], [0.0, 1.0])


def sample(step: int, **values: float) -> dict[str, float]:
    return {"step": step, **values}


def test_the_warm_up_has_no_part_in_slopes() -> None:
    samples = [
        sample(s, driver=0.0 if s <= 250 else 3.0 * s, store=9.0) for s in range(50, 1001, 50)
    ]
    found = endurance.slopes(samples, 1000)
    assert list(found) == ["driver", "store"]  # what was not watched all the time is left out
    assert found["driver"].bytes == pytest.approx(3.0) and found["store"] == (0.0, 0.0)


# --- pages --------------------------------------------------------------------------------------


def run(between: float, every: int, goodput: float, seconds: float, same: bool) -> dict[str, Any]:
    phases = {"noticing": 0.25, "starting": seconds - 1.25, "replaying": 1.0}
    kill = {**asdict(Kill(1.0, "block", (7,))), "recovery": seconds, "phases": phases}
    return {
        "every": every,
        "between": between,
        "planned": 2,
        "steps": 100,
        "rate_without_kills": 10.0,
        "seconds": 60.0,
        "new_steps": 90,
        "goodput": goodput,
        "kills": [kill, {**kill, "recovery": None, "phases": {}}],
        "incidents": [lost(7, 10.0, **phases).record()],
        "same_bits": same,
    }


def punished_page(*runs: dict[str, Any]) -> str:
    record = {
        "environment": records.environment(),
        "workload": {**asdict(punisher.WORKLOAD), "rule": "local"},
        "transport": "direct",
        "nodes": False,
        "seed": 0,
        "runs": list(runs),
    }
    return punisher_page.page(json.loads(json.dumps(record)))


@pytest.mark.parametrize(
    ("goodput", "seconds", "same", "words"),
    [(0.80, 4.9, True, ("yes", "yes", "yes")), (0.79, 5.0, False, ("no", "no", "no"))],
)
def test_the_punishers_page_begins_with_what_was_asked(
    goodput: float, seconds: float, same: bool, words: tuple[str, ...]
) -> None:
    text = punished_page(run(30.0, 100, goodput, seconds, same))
    asked = records.table_of(text).splitlines()[2:]
    assert tuple(line.split("|")[-2].strip() for line in asked) == words
    assert f"| 30 | 100 | 2 of 2 | 1 | 90 | 60 | 10 | 10.0 | {goodput:.0%} |" in text
    assert "| noticing | 0.25 (0.25 to 0.25) |\n| ending | 0.00 (0.00 to 0.00) |" in text
    assert "| goodput | a kill" not in text


def test_the_punishers_table_has_both_intervals() -> None:
    runs = [run(b, e, b * e / 10_000, 4.0, True) for e in (20, 100) for b in (15.0, 60.0)]
    text = punished_page(*runs)
    assert "| goodput | a kill every 15 s | a kill every 60 s |" in text
    assert "| a snapshot every 100 steps | 15% | 60% |" in text
    assert "goodput, 2 kills, one every 30 s" not in text


def test_the_page_of_snapshots_compares_within_a_repeat() -> None:
    def repeat(fast: float, slow: float) -> dict[str, Any]:
        samples = {
            snapshots.WITHOUT: {"rate": fast, "details": {"snapshots": 0}},
            snapshots.WITH: {"rate": slow, "details": {"snapshots": 5}},
        }
        return {"busy_cores": 0.0, "load_average": 0.0, "stolen_s": 0.0, "samples": samples}

    case = {
        "workload": {"batch": 128},
        "parameters": 5_100_000,
        "steps": WARMUP + 100,
        "repeats": [repeat(10.0, 9.8), repeat(20.0, 19.2), repeat(5.0, 4.9)],
    }
    record = {"environment": records.environment(), "transport": "direct", "cases": [case]}
    text = snapshots.page(record)
    assert "| 0.980 (0.960 to 0.980) | 0.97 | yes |" in text and "5.1 M" in text
    assert snapshots.delays(case)[2] == pytest.approx(1000 * (100 / 4.9 - 100 / 5.0) / 5)
    case["repeats"] = [repeat(10.0, 9.6)]
    assert "| 0.960 (0.960 to 0.960) | 0.97 | no |" in snapshots.page(record)


@pytest.mark.parametrize(("grows", "word"), [(0.0, "yes"), (300.0, "no")])
def test_the_page_of_endurance_says_flat_or_not(grows: float, word: str) -> None:
    samples = [sample(s, driver=1e8 + grows * s, store=0.0) for s in range(500, 20_001, 500)]
    found = endurance.slopes(samples, 20_000)
    record = {
        "environment": records.environment(),
        "transport": "object_store",
        "steps": 20_000,
        "every": 100,
        "kill_every": 2_000,
        "samples": samples,
        "slopes": {name: line._asdict() for name, line in found.items()},
        "kills": [],
        "incidents": [],
    }
    text = endurance.page(record)
    (row,) = (line for line in text.splitlines() if line.startswith("| driver, resident | "))
    assert row.endswith(f"| {word} |") and f"| {grows:.0f} ± 0 |" in row
    assert "| 20,000 | " in text


# --- the benchmarks themselves, tiny --------------------------------------------------------------


def test_quick_runs_leave_the_committed_results_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(records, "write", lambda *given: written.append(given[-1]))
    for words in ([], ["--quick"], ["--quick", "--results", str(tmp_path)]):
        survival.keep("name", {}, "page", punisher.options(words))
    assert written == [records.RESULTS, tmp_path]


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_the_punisher_kills_and_the_bits_are_the_same(tmp_path: Path) -> None:
    punisher.main(["--quick", "--results", str(tmp_path)])
    (found,) = json.loads((tmp_path / "punisher.json").read_text())["runs"]
    (kill,), (incident,) = found["kills"], found["incidents"]
    assert kill["processes"] == [loss["process"] for loss in incident["losses"]]
    assert 0 < kill["at"] < 2 and kill["recovery"] > kill["phases"]["starting"] > 0
    assert sum(kill["phases"].values()) == pytest.approx(kill["recovery"], abs=0.5)
    assert found["same_bits"] and 0 < found["goodput"] < 1
    assert sum(found["new_steps_by_second"]) == found["new_steps"] <= found["steps"]
    assert "1 of 1" in (tmp_path / "punisher.md").read_text()


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_snapshots_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "LOOKING_SECONDS", 0.05)
    snapshots.main(["--quick", "--results", str(tmp_path)])
    (case,) = json.loads((tmp_path / "snapshots.json").read_text())["cases"]
    (repeat,) = case["repeats"]
    taken = repeat["samples"][snapshots.WITH]["details"]["snapshots"]
    assert taken == (case["steps"] - WARMUP) // snapshots.EVERY >= 3
    assert all(one["rate"] > 0 for one in repeat["samples"].values())
    assert "| 16 |" in (tmp_path / "snapshots.md").read_text()
