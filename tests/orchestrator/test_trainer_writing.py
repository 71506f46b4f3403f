"""Checkpoints are written beside training: who waits, what a failure costs, what is restored."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator

import pytest
import torch

from learning.errors import UserError
from orchestrator.events import Event
from orchestrator.files import Chunk
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.storage import LocalStorage, StorageError
from tests.orchestrator.recording import (
    RULE,
    Recorder,
    Scripted,
    checkpointed,
    snapshot,
    step_done,
    trainer,
    validated,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_at = {"step-00000020"}
    write = LocalStorage.write

    def full(storage: LocalStorage, name: str, chunks: Iterable[Chunk], size: int) -> None:
        if name.split("/")[0] in fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(storage, name, chunks, size)

    monkeypatch.setattr(LocalStorage, "write", full)
    recorder = Recorder()
    events = [e for step in (9, 19, 29) for e in checkpointed(step, 0.5)]
    trainer(run, recorder).train(Scripted(events), range(100), Calendar())
    assert run.checkpoints.steps() == [10, 30] and run.state.steps == 30
    assert "cannot write checkpoint 20" in caplog.text and "No space left" in caplog.text
    assert recorder.heard.count(("recovered", 0)) == 1
    (line,) = (run.path / "incidents.jsonl").read_text().splitlines()
    assert json.loads(line)["action"] == "the run went on without this checkpoint"
    fails_at.add("step-00000040")
    with pytest.raises(StorageError, match="cannot write checkpoint 40"):  # the run's last
        trainer(run).train(Scripted(checkpointed(39, 0.5)), range(30, 40), Calendar())
    assert run.checkpoints.last == 30


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets the storage go on; until then it is slow."""
    write, go = LocalStorage.write, threading.Event()

    def slow(storage: LocalStorage, name: str, chunks: Iterable[Chunk], size: int) -> None:
        assert go.wait(300)
        if sys.platform == "linux":
            assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 19
        write(storage, name, chunks, size)

    monkeypatch.setattr(LocalStorage, "write", slow)
    return go


def test_training_goes_on_while_a_snapshot_is_written_and_the_next_one_waits(
    run: RunDirectory, go: threading.Event
) -> None:
    def events() -> Iterator[Event]:
        yield snapshot(0)
        yield step_done(1)
        assert run.checkpoints.last is None
        go.set()
        yield snapshot(1)
        assert run.checkpoints.last is not None

    before = os.getpriority(os.PRIO_PROCESS, 0)
    trainer(run).train(Scripted(events()), range(100), Calendar())
    assert run.checkpoints.steps() == [1, 2] and run.state.steps == 2
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


class Waiting(Recorder):
    """Hears of each checkpoint before anything later."""

    waits_for_saved = True

    def saved(self, steps: int) -> None:
        self.heard.append(("saved", steps))


def test_training_waits_for_checkpoints_where_an_observer_does(run: RunDirectory) -> None:
    waiting = Waiting()
    events = [snapshot(0), step_done(1), validated(1, 0.5), snapshot(1), step_done(2)]
    trainer(run, waiting).train(Scripted(events), range(100), Calendar())
    order = [heard[:2] for heard in waiting.heard]
    assert order == [("saved", 1), ("stepped", 1), ("evaluated", 1), ("saved", 2), ("stepped", 2)]


def test_what_is_being_written_is_waited_for_before_anything_is_restored(
    run: RunDirectory, go: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, restored = trainer(run), list[int]()
    finish = mine._finish_writing

    def finishing() -> None:
        go.set()
        finish()

    def events() -> Iterator[Event]:
        yield snapshot(4)
        monkeypatch.setattr(mine, "_finish_writing", finishing)
        restored.append(mine.restore(9)[0])

    mine.train(Scripted(events()), range(100), Calendar())
    assert restored == [5]


def test_a_snapshot_that_is_being_written_when_the_run_ends_is_whole(
    run: RunDirectory, go: threading.Event
) -> None:
    def events() -> Iterator[Event]:
        yield snapshot(4)
        go.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(run).train(Scripted(events()), range(100), Calendar())
    assert run.checkpoints.last == run.state.steps == 5 and run.checkpoints.load(5)


def test_what_is_restored_is_the_last_checkpoint_that_is_whole(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (4, 6, 8):
        state = {"block1": {"model.w": torch.full((2,), float(step))}}
        run.checkpoints.save(step, state, plan_hash="0123", rule=RULE, metrics=None)
    mine = trainer(run)
    assert mine.restore(9) == (0, None)  # none is marked: they are of another past
    run.checkpoints.mark(last=6)
    assert mine.restore(9)[0] == 6
    assert mine.restore(5)[0] == 4
    assert mine.restore(3) == (0, None)
    (file,) = (run.path / "checkpoints").glob("step-00000006*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    step, restored = mine.restore(9)
    assert step == 4 and restored is not None
    assert torch.equal(restored["block1"]["model.w"], torch.full((2,), 4.0))
    assert "checkpoint 6 is skipped" in caplog.text


def test_a_run_that_began_at_a_checkpoint_has_no_other_start(run: RunDirectory) -> None:
    mine = trainer(run)
    mine.train(Scripted([]), range(10, 20), Calendar())
    with pytest.raises(UserError, match="no checkpoint of .* up to step 15 is whole"):
        mine.restore(15)
