"""Run directories appear whole, keep their state through crashes, and hold one writer."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from learning.errors import UserError
from orchestrator import files
from orchestrator.rundir import RunDirectory, RunState
from tests.orchestrator.faults import with_faults
from tests.orchestrator.runs import PLAIN, PLAN, make, spans_of

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_layout(tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "a")
    assert set(os.listdir(run.path)) == {
        *("config.yaml", "version.json", "plan.json", "state.json"),
        *("metrics.jsonl", "spans.jsonl", "checkpoints"),
    }
    assert os.listdir(tmp_path / "runs") == ["a"]
    run = RunDirectory.open(tmp_path / "runs" / "x" / ".." / "a")
    assert run.path == tmp_path / "runs" / "a" and run.config == PLAIN
    assert json.loads((run.path / "version.json").read_text()) == {"torch": "2"}
    assert run.state == RunState() and run.read_metrics() == [] == spans_of(run)
    assert run.checkpoints.storage.at("x") == str(run.path / "checkpoints" / "x")
    assert run.plan == PLAN
    (run.path / "config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"config.yaml is not valid YAML .* restore it"):
        run.config  # noqa: B018


def test_refused_paths_stay_as_they_are(tmp_path: Path) -> None:
    taken, file, empty = tmp_path / "taken", tmp_path / "file", tmp_path / "empty"
    taken.mkdir()
    empty.mkdir()
    (taken / "x").touch()
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (taken, file, link, tmp_path / "a" / ".."):
        with pytest.raises(UserError, match=r"exists .*choose another run.directory or --resume"):
            make(path)
    for path in (file / "run", tmp_path / "new" / ("x" * 250)):
        with pytest.raises(UserError, match="cannot create"):
            make(path)
    with pytest.raises(TypeError):
        RunDirectory.create(tmp_path / "new" / "a", config={"a": object()}, version={}, plan=PLAN)
    assert set(os.listdir(tmp_path)) == {"taken", "file", "empty", "link"}
    assert os.listdir(taken) == ["x"]
    assert make(empty).config == PLAIN
    with pytest.raises(UserError, match="exists"):
        make(empty)
    for path in (taken, file, tmp_path / "none"):
        with pytest.raises(UserError, match=r"not a run directory \(no config.yaml\)"):
            RunDirectory.open(path)


def test_a_directory_filled_while_a_run_is_made_is_refused(tmp_path: Path) -> None:
    rename = os.rename

    def race(a: Path, b: Path) -> None:
        b.mkdir()
        (b / "other").touch()
        rename(a, b)

    with mock.patch("os.rename", race), pytest.raises(UserError, match="cannot create"):
        make(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["other"]


def test_interrupted_creation(tmp_path: Path) -> None:
    outcomes = set()
    for d, mode in with_faults(tmp_path, lambda d: None, lambda d: make(d / "runs" / "a")):
        path = d / "runs" / "a"
        outcomes.add(path.exists())
        if path.exists():
            assert RunDirectory.open(path).config == PLAIN
            assert RunDirectory.open(path).state == RunState()
        else:
            if mode == "once":
                assert os.listdir(d) == []
            make(path)
            assert os.listdir(d / "runs") == ["a"]
    assert outcomes == {True, False}


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    kept = [f".a.new-{os.getppid()}", f".b.new-{dead}", f".a.new-{dead}x", ".a.new-"]
    for name in [f".a.new-{dead}", *kept]:
        (tmp_path / name).mkdir()
    make(tmp_path / "a")
    assert set(os.listdir(tmp_path)) == {"a", *kept}


def test_state(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.update_state(steps=5, mlflow_run_id="x")
    assert run.update_state(status="finished") == run.state
    assert run.state == RunState(status="finished", steps=5, mlflow_run_id="x")
    for wrong in ({"step": 5}, {"status": "done"}, {"steps": -1}):
        with pytest.raises(ValueError):
            run.update_state(**wrong)
    assert run.state.steps == 5
    path = run.path / "state.json"
    path.write_text(path.read_text().replace("5", "6", 1))
    with pytest.raises(UserError, match=r"state.json is damaged"):
        run.state  # noqa: B018
    path.write_bytes(files.sealed({"status": "odd"}))
    with pytest.raises(UserError, match=r"state.json is foreign"):
        run.state  # noqa: B018


def test_interrupted_update_of_the_state(tmp_path: Path) -> None:
    outcomes = set()

    def act(d: Path) -> None:
        RunDirectory.open(d / "a").update_state(steps=7, status="failed")

    for d, _ in with_faults(tmp_path, lambda d: make(d / "a"), act):
        run = RunDirectory.open(d / "a")
        assert run.state in (RunState(), RunState(steps=7, status="failed"))
        outcomes.add(run.state.steps)
        with run.lock():
            assert [n for n in os.listdir(run.path) if n.startswith(".")] == []
        assert run.update_state(steps=8).steps == run.state.steps == 8
    assert outcomes == {0, 7}


def test_a_run_holds_one_process(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    read, write = os.pipe()
    process = os.fork()
    if not process:
        with run.lock():
            os.write(write, b"x")
            signal.pause()
    try:
        assert os.read(read, 1) == b"x"
        message = rf"run {run.path} is in use by process {process}: wait .*another run.directory"
        with pytest.raises(UserError, match=message), RunDirectory.open(run.path).lock():
            pass
        assert run.read_metrics() == []  # reading needs no lock
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with run.lock():
        assert (run.path / "lock").read_text() == f"{os.getpid()}\n"
        # Nor twice in one process.
        with pytest.raises(UserError, match="in use"), RunDirectory.open(run.path).lock():
            pass
    with suppress(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass
    with pytest.raises(UserError, match="cannot lock"), RunDirectory(tmp_path / "none").lock():
        pass


def test_the_lock_recovers_what_a_crash_left(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    new = run.path / "checkpoints" / "step-00000001"
    new.mkdir()
    assert RunDirectory.open(run.path).checkpoints.steps() == []
    assert new.exists()  # a reader must not touch what may be a live run's
    with run.lock():
        assert not new.exists()
