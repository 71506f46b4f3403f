"""SIGTERM to the command, as Slurm and Kubernetes send it: nothing that was finished is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
import yaml

from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import metrics_of, state_of
from tests.blocklocal.studies import kept, write_study
from tests.blocklocal.sweeps import SMALL
from tests.blocklocal.terminating import WORDS, forked, same, start, tensors, told, until

STEPS = 2000
FORKSERVER = get_context("forkserver")


def listening(process: subprocess.Popen[str]) -> dict[str, set[str]]:
    """The addresses at which a process and those it has started listen, by their names."""
    me = psutil.Process(process.pid)
    found: dict[str, set[str]] = {}
    for one in [me, *me.children(recursive=True)]:
        for connection in one.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(one.name(), set()).add(connection.laddr.ip)
    return found


def ended(process: subprocess.Popen[str], code: int) -> list[str]:
    """What it said at its end; nothing that it has started is left."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "***" not in error and "Traceback" not in error  # no stack of Python or C++
    return [line for line in error.splitlines() if line.startswith("blocklocal: ")]


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_a_run_on_ray_keeps_all_that_was_finished(number: int, code: int, tmp_path: Path) -> None:
    """Nor does its Ray listen for others."""
    words = [*WORDS, "training.steps=100000", "checkpoints.every=100000"]
    process = start(tmp_path, "train", *words)
    run = tmp_path / "run"
    assert until(process, lambda: told(run) > 5), process.communicate()
    addresses = listening(process)
    assert {"gcs_server", "raylet"} <= set(addresses)
    assert set().union(*addresses.values()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    children = psutil.Process(process.pid).children(recursive=True)
    before = told(run)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does
    *_, said = ended(process, code)
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    state = state_of(run)
    steps = [r["step"] for r in metrics_of(run) if r["split"] == "train"]
    how = f"go on with blocklocal train --resume {run}"
    assert said == f"blocklocal: {what} at step {len(steps)} of 100000; {how}"
    assert (state["status"], state["steps"], state["error"]) == ("stopped", len(steps), None)
    assert steps == list(range(len(steps))) and len(steps) >= before
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.mark.parametrize(
    "moments", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_at_random_moments_nothing_that_was_finished_is_lost(moments: int, tmp_path: Path) -> None:
    """One run in many processes: what was told is never told again, and the end has its bits."""

    def train(*words: str) -> ForkServerProcess:
        process = FORKSERVER.Process(target=forked, args=(str(tmp_path), ("train", *words)))
        process.start()
        return process

    def said() -> list[str]:
        lines = (tmp_path / "said").read_text().splitlines()
        return [line for line in lines if line.startswith("blocklocal: ")]

    run, draw = tmp_path / "run", random.Random(moments)
    words = [*WORDS, f"training.steps={STEPS}", "engine.kind=sequential"]
    for number in range(moments):
        process, before = train(*words), told(run)
        # All within the first half: however late the signal is, the run has not finished.
        wanted = before + draw.randrange(1, STEPS // moments // 2)
        while process.is_alive() and told(run) < wanted:
            process.join(0.002)
        before = told(run)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 143, said()
        assert said()[-1].startswith("blocklocal: stopped by SIGTERM at step "), said()
        state = state_of(run)
        assert (state["status"], state["steps"]) == (
            "stopped",
            RunDirectory.open(run).checkpoints.last,
        )
        steps = [r["step"] for r in metrics_of(run) if r["split"] == "train"]
        assert told(run) >= before and steps == list(range(state["steps"]))
        print(f"moment {number}: {before} records, step {state['steps']}")
        words = ["--resume", "run"]
    last = train("--resume", "run")
    last.join()
    assert last.exitcode == 0 and said() == []
    os.rename(run, tmp_path / "stopped")
    whole = train(*WORDS, f"training.steps={STEPS}", "engine.kind=sequential")
    whole.join()
    assert whole.exitcode == 0 and state_of(run)["steps"] == STEPS
    assert metrics_of(run) == metrics_of(tmp_path / "stopped")
    assert same(tensors(run), tensors(tmp_path / "stopped"))


@pytest.mark.timeout(280)
def test_a_study_keeps_what_is_finished(tmp_path: Path) -> None:
    settings = {
        "network": {"widths": [5, 5]},
        "blocks": {"at": ["layer2"]},
        "data": {"kind": "arrays", "path": "mine.npz", "validation": 0.2},
        "training": {"steps": 100_000, "batch": 8},
    }
    short = {"rule": {"kind": "backprop"}, "training": {"steps": 4}}
    write_study(
        tmp_path,
        settings=settings,
        rules={"backprop": short, "long": ["rule.kind=local"]},
        seeds=[0],
        workers=1,
    )
    process = start(tmp_path, "compare", "study.yaml")
    runs = tmp_path / "studies/tiny"
    assert until(process, lambda: any(runs.glob("runs/*.json"))), process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert ended(process, 143) == ["blocklocal: stopped by SIGTERM; the same command goes on"]
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert [record["rule"] for record in kept(runs).values()] == ["backprop"]


@pytest.mark.long
@pytest.mark.timeout(280)
def test_a_sweep_goes_on(tmp_path: Path) -> None:
    training = {"steps": 3000, "batch": 8, "evaluate_every": 100}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SMALL, "training": training}))
    process = start(tmp_path, "tune", "sweep.yaml")

    def under_way() -> bool:
        return any(told(run.parent) > 300 for run in tmp_path.glob("swept/trials/*/state.json"))

    assert until(process, under_way), process.communicate()
    process.send_signal(signal.SIGTERM)
    how = f"go on with blocklocal tune --resume {tmp_path}/swept"
    assert ended(process, 143)[-1:] == [f"blocklocal: stopped by SIGTERM; {how}"]
    assert ended(start(tmp_path, "tune", "--resume", "swept"), 0) == []
    trials = json.loads((tmp_path / "swept/trials.json").read_text())
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert {state_of(run)["status"] for run in tmp_path.glob("swept/trials/????")} == {"finished"}
