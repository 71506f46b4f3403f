"""Run directories appear whole, keep their records through crashes, and hold one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from actors.operations import Span
from learning.errors import UserError
from orchestrator import files
from orchestrator import lines as line_files
from orchestrator.rundir import RunDirectory, RunState
from orchestrator.version import code_version
from tests.orchestrator.faults import fault, with_faults
from tests.orchestrator.runs import PLAN, spans_of

CONFIG = {"rule": {"kind": "bll", "lr": 1e-08, "betas": (0.9, 0.5)}, "name": "1e-3", "é": None}
PLAIN = {"rule": {"kind": "bll", "lr": 1e-08, "betas": [0.9, 0.5]}, "name": "1e-3", "é": None}


pytestmark = pytest.mark.usefixtures("no_fsync")


def make(path: Path) -> RunDirectory:
    return RunDirectory.create(path, config=CONFIG, version={"torch": "2"}, plan=PLAN)


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
    with pytest.raises(UserError, match=r"cannot read .*config.yaml"):
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


def test_metrics_and_spans(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.append_metrics([{"step": 0, "loss": 0.1}, {"step": 1, "name": "é\n"}])
    run.append_metrics([])
    run.append_spans("block1", [Span("F", 3, 1, started=10, ended=20, waited=5, blocked=2)])
    assert run.read_metrics() == [
        {"step": 0, "loss": 0.1},
        {"step": 1, "name": "é\n"},
    ]  # not closed
    span = {"actor": "block1", "kind": "F", "step": 3, "shard": 1}
    span |= {"started": 10, "ended": 20, "waited": 5, "blocked": 2}
    assert spans_of(run) == [span]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            run.append_metrics([{"step": 2}, {"step": 2, "loss": value}])
    with pytest.raises(TypeError):
        run.append_metrics([{"step": 2, "loss": object()}])
    assert len(run.read_metrics()) == 2
    run.close()
    run.append_metrics([{"step": 2}])
    assert len(run.read_metrics()) == 3
    run.close()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_torn_last_line_is_ignored_and_not_appended_to(tmp_path: Path, chunk: int) -> None:
    lines = b'{"step": 0}\n{"step": 1}\n'
    for i in range(len(lines) + 1):
        run = make(tmp_path / str(i))
        (run.path / "metrics.jsonl").write_bytes(lines[:i])
        whole = lines[:i].count(b"\n")
        assert run.read_metrics() == [{"step": s} for s in range(whole)]
        with mock.patch.object(line_files, "CHUNK", chunk):
            run.append_metrics([{"step": 9}])
        assert run.read_metrics() == [*({"step": s} for s in range(whole)), {"step": 9}]
        run.close()


@pytest.mark.parametrize("line", ["{", "\0\0", "[]", "1", "", '{"step": "1"}', "\xff"])
def test_other_damage_is_named(tmp_path: Path, line: str) -> None:
    run = make(tmp_path / "a")
    path = run.path / "metrics.jsonl"
    text = f'{{"step": 0}}\n{line}\n{{"step": 1}}\n'.encode("latin-1")
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged in line 2 .*delete that line"):
        run.read_metrics()
    with pytest.raises(UserError, match="line 2"):
        run.rewind(0)
    assert path.read_bytes() == text and not (run.path / ".metrics.jsonl.new").exists()
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        run.read_metrics()


def test_interrupted_append(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.append_metrics([{"step": 0}])
    with fault(1, "once"), pytest.raises(OSError):
        run.append_metrics([{"step": 1}, {"step": 2}, {"step": 3}])
    assert run.read_metrics() == [{"step": 0}, {"step": 1}]  # half of the bytes: 1 and a torn 2
    run.append_metrics([{"step": 4}])
    assert run.read_metrics() == [{"step": 0}, {"step": 1}, {"step": 4}]
    run.close()


def _fill(path: Path) -> RunDirectory:
    run = make(path)
    run.append_metrics([{"step": s} for s in range(5)] + [{"note": "kept"}])
    run.append_spans(
        "block1", [Span("F", s, 0, started=1, ended=2, waited=0, blocked=0) for s in range(5)]
    )
    return run


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_rewind(tmp_path: Path, chunk: int) -> None:
    run = _fill(tmp_path / "a")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    with mock.patch.object(line_files, "CHUNK", chunk):
        run.rewind(3)
    assert run.read_metrics() == [{"step": 0}, {"step": 1}, {"step": 2}, {"note": "kept"}]
    assert [s["step"] for s in spans_of(run)] == [0, 1, 2]
    run.append_metrics([{"step": 3}])  # goes to the new file, not to the one replaced
    assert run.read_metrics()[-1] == {"step": 3}
    run.rewind(0)
    assert run.read_metrics() == [{"note": "kept"}] and spans_of(run) == []


def test_interrupted_rewind(tmp_path: Path) -> None:
    old, new = list(range(5)), list(range(2))
    outcomes = set()

    def act(d: Path) -> None:
        RunDirectory.open(d / "a").rewind(2)

    for d, _ in with_faults(tmp_path, lambda d: _fill(d / "a").close(), act):
        run = RunDirectory.open(d / "a")
        metrics = [r["step"] for r in run.read_metrics() if "step" in r]
        spans = [r["step"] for r in spans_of(run)]
        assert metrics in (old, new) and spans in (old, new)
        outcomes.add((len(metrics), len(spans)))
        run.rewind(2)
        assert [r["step"] for r in spans_of(run)] == new
        assert len(run.read_metrics()) == 3
    assert outcomes == {(5, 5), (2, 5), (2, 2)}


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


def _git(directory: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(path: Path) -> tuple[object, object]:
        version = code_version(path)
        json.dumps(version, allow_nan=False)
        return version["git_commit"], version["git_dirty"]

    source = tmp_path / "repo" / "a.py"
    source.parent.mkdir()
    source.touch()
    assert commit(source) == (None, None)  # no checkout
    _git(source.parent, "init")
    assert commit(source) == (None, None)  # not tracked
    _git(source.parent, "add", "a.py")
    assert commit(source) == (None, None)  # no commit yet
    _git(source.parent, "commit", "-m", "a")
    head = _git(source.parent, "rev-parse", "HEAD")
    assert len(head) == 40 and commit(source) == (head, False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit(source) == (head, False)
    monkeypatch.delenv("GIT_DIR")
    source.write_text("1")
    assert commit(source) == (head, True)
    installed = source.parent / "site-packages" / "b.py"
    installed.parent.mkdir()
    installed.touch()
    assert commit(installed) == (None, None)  # inside a checkout, but not of it
    monkeypatch.setenv("PATH", "")
    version = code_version(source)
    assert version["git_commit"] is None and version["torch"] and version["ray"]
    assert version["cpu_count"] > 0 and isinstance(version["gpus"], list)
