"""The trainer records what an engine tells it, and keeps the last and the best checkpoint."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.operations import Span
from learning.data import AugmentSettings, Batches, arrays_dataset
from learning.errors import NonFiniteLossError, UserError
from orchestrator.events import (
    Evaluated,
    Event,
    Kept,
    Metrics,
    SnapshotTaken,
    StepDone,
    Worked,
)
from orchestrator.files import Chunk
from orchestrator.incidents import Incident
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.storage import LocalStorage, StorageError
from orchestrator.trainer import Observer, Schedule, Trainer
from tests.orchestrator.engines import Case, inline_engine, snapshot_of, told
from tests.orchestrator.runs import PLAN, spans_of

RULE = {"kind": "local"}


pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory.create(tmp_path / "run", config={}, version={}, plan=PLAN)
    with directory.lock():
        yield directory


class Scripted:
    """An engine that tells what it is given, and then raises what it is given."""

    def __init__(self, events: Iterable[Event], error: BaseException | None = None) -> None:
        self.events, self.error = events, error

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        raise AssertionError("the trainer loads nothing")

    def train(self, steps: range, calendar: Calendar, kept: Kept | None = None) -> Iterator[Event]:
        yield from self.events
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        raise AssertionError("who made the engine closes it")


class Recorder(Observer):
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def stepped(self, step: int, metrics: Metrics) -> None:
        self.heard.append(("stepped", step, metrics))

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self.heard.append(("evaluated", step, split, metrics))

    def recovered(self, incident: Incident) -> None:
        self.heard.append(("recovered", incident.number))

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        self.heard.append(("worked", actor, list(spans)))


def trainer(run: RunDirectory, *observers: Recorder) -> Trainer:
    return Trainer(run, run.checkpoints, "0123", RULE, "block2", observers)


def train(run: RunDirectory, events: Sequence[Event], error: BaseException | None = None) -> None:
    trainer(run).train(Scripted(events, error), range(100), Calendar())


def step_done(step: int) -> StepDone:
    return StepDone(step, {"block1": {"loss": 2.0 + step, "accuracy": 0.25}, "block2": {}})


def validated(step: int, accuracy: float, loss: float = 1.0) -> Evaluated:
    other = {"loss": 1.0, "accuracy": 0.99}  # of block 1, which must not matter
    mine = {"loss": loss, "accuracy": accuracy}
    return Evaluated(step, "validation", {"block1": other, "block2": mine})


def snapshot(step: int, value: float | None = None) -> SnapshotTaken:
    weight = torch.full((3,), float(step) if value is None else value)
    return SnapshotTaken(
        step, {"block1": {"model.w": weight}, "block2": {"model.n": torch.tensor(1)}}
    )


def checkpointed(step: int, accuracy: float) -> list[Event]:
    return [step_done(step), validated(step, accuracy), snapshot(step)]


def test_every_event_leaves_its_record(run: RunDirectory) -> None:
    spans = [Span("F", 0, 0, 10, 20, 1, 2), Span("U", 0, 0, 20, 30, 0, 0)]
    test = Evaluated(0, "test", {"block2": {"loss": 3.0, "accuracy": 0.5}})
    events = [Worked("block1", spans, 5), step_done(0), validated(0, 0.5), test, snapshot(0)]
    recorder = Recorder()
    trainer(run, recorder).train(Scripted(events), range(1), Calendar())
    assert run.read_metrics() == [
        {"step": 0, "split": "train", "block1/loss": 2.0, "block1/accuracy": 0.25},
        {
            "step": 0,
            "split": "validation",
            "block1/loss": 1.0,
            "block1/accuracy": 0.99,
            "block2/loss": 1.0,
            "block2/accuracy": 0.5,
        },
        {"step": 0, "split": "test", "block2/loss": 3.0, "block2/accuracy": 0.5},
    ]
    assert spans_of(run) == [{"actor": "block1", **span._asdict()} for span in spans]
    assert [heard[:3] for heard in recorder.heard] == [
        ("worked", "block1", spans),
        ("stepped", 0, step_done(0).metrics),
        ("evaluated", 0, "validation"),
        ("evaluated", 0, "test"),
    ]


def test_checkpoints_count_finished_steps_and_hold_what_they_were_told(run: RunDirectory) -> None:
    train(run, checkpointed(9, 0.5))
    assert run.state.steps == run.checkpoints.last == run.checkpoints.best == 10
    checkpoint = run.checkpoints.load(10)
    assert (checkpoint.plan_hash, checkpoint.rule) == ("0123", RULE)
    assert checkpoint.metrics == {"validation/accuracy": 0.5}
    assert torch.equal(checkpoint.state["block1"]["model.w"], torch.full((3,), 9.0))


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
        assert go.wait(30)
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


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.1, 0.2, 0.3], 3),
        ([0.3, 0.2, 0.1], 1),
        ([0.1, 0.3, 0.2], 2),
        ([0.2, 0.2, 0.2], 1),  # the first of equals
        ([0.0, 0.0], 1),
    ],
)
def test_newest_and_best_are_kept_and_the_others_are_pruned(
    run: RunDirectory, accuracies: list[float], best: int
) -> None:
    for step, accuracy in enumerate(accuracies):
        train(run, checkpointed(step, accuracy))
    last = len(accuracies)
    assert (run.checkpoints.last, run.checkpoints.best) == (last, best)
    assert run.checkpoints.best_value == accuracies[best - 1]
    assert run.checkpoints.steps() == sorted({best, last - 1, last})


def test_without_a_validation_split_the_newest_checkpoints_are_kept(run: RunDirectory) -> None:
    train(run, [event for step in range(3) for event in (step_done(step), snapshot(step))])
    assert (run.checkpoints.last, run.checkpoints.best) == (3, None)
    assert run.checkpoints.steps() == [2, 3]
    assert run.checkpoints.load(3).metrics is None


@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt()], ids=str)
def test_crash_keeps_the_last_checkpoint_and_all_records(
    run: RunDirectory, error: BaseException
) -> None:
    events = [*checkpointed(4, 0.5), step_done(5), validated(6, 0.9)]
    with pytest.raises(type(error)):
        train(run, events, error)
    assert [(r["step"], r["split"]) for r in run.read_metrics()] == [
        (4, "train"),
        (4, "validation"),
        (5, "train"),
        (6, "validation"),
    ]
    assert run.state.steps == run.checkpoints.last == run.checkpoints.best == 5
    assert run.checkpoints.load(5).metrics == {"validation/accuracy": 0.5}


def test_weights_that_are_finite_are_saved_even_where_their_sum_is_not(run: RunDirectory) -> None:
    train(run, [step_done(0), snapshot(0, 3e38)])
    assert run.checkpoints.last == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_or_losses_that_are_not_finite_replace_no_checkpoint(
    run: RunDirectory, bad: float
) -> None:
    train(run, checkpointed(0, 0.5))
    with pytest.raises(UserError, match=r"model\.w of block1 is not finite after step 1"):
        train(run, [step_done(1), validated(1, 0.9), snapshot(1, bad)])
    with pytest.raises(NonFiniteLossError, match="block 2 is (nan|-?inf) at step 2"):
        train(run, [step_done(2), validated(2, 0.9, loss=bad), snapshot(2)])
    assert run.checkpoints.steps() == [1]
    assert run.checkpoints.last == run.checkpoints.best == 1


def batches(validation: float) -> Batches:
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    data = arrays_dataset(x, y, x[:30], y[:30], validation=validation)
    return Batches(data, seed=0, batch=4, augment=AugmentSettings())


def test_calendar_validates_every_so_often_and_tests_at_the_end_only() -> None:
    calendar = Schedule(steps=9, evaluate_every=3).calendar(batches(0.25), 8)
    assert calendar.evaluations == {
        2: ("validation",),
        5: ("validation",),
        8: ("validation", "test"),
    }
    assert calendar.snapshots == {2, 5, 8}
    assert calendar.evaluation_batches == {"validation": 2, "test": 4}


@pytest.mark.parametrize(
    ("steps", "every", "after"),
    [(10, 3, [2, 5, 8, 9]), (1, 1, [0]), (1, 100, [0]), (4, 1, [0, 1, 2, 3]), (5, 5, [4])],
)
def test_last_step_is_always_evaluated_and_saved(steps: int, every: int, after: list[int]) -> None:
    calendar = Schedule(steps, every).calendar(batches(0.25), 8)
    assert sorted(calendar.evaluations) == sorted(calendar.snapshots) == after
    tested = [step for step, splits in calendar.evaluations.items() if "test" in splits]
    assert tested == [steps - 1]


def test_checkpoints_between_evaluations() -> None:
    calendar = Schedule(10, 4, checkpoint_every=3).calendar(batches(0.25), 8)
    assert sorted(calendar.evaluations) == [3, 7, 9]
    assert sorted(calendar.snapshots) == [2, 3, 5, 7, 8, 9]


def test_keep_is_the_number_of_the_newest(run: RunDirectory) -> None:
    observers: list[Observer] = []
    events = [event for step in range(5) for event in (step_done(step), snapshot(step))]
    trainer = Trainer(run, run.checkpoints, "0123", RULE, "block2", observers, keep=3)
    trainer.train(Scripted(events), range(5), Calendar())
    assert run.checkpoints.steps() == [3, 4, 5]


def test_empty_validation_split_is_not_evaluated() -> None:
    calendar = Schedule(4, 2).calendar(batches(0.0), 8)
    assert calendar.evaluations == {1: (), 3: ("test",)}
    assert calendar.snapshots == {1, 3}


def test_a_real_engine_is_recorded_whole_and_its_checkpoint_resumes(run: RunDirectory) -> None:
    case = Case()
    calendar = Calendar(
        {4: ("validation",), 8: ("validation",)}, frozenset({4, 8}), {"validation": 2}
    )
    with inline_engine(case) as engine:
        Trainer(run, run.checkpoints, "0123", RULE, "block3").train(engine, range(9), calendar)
    metrics = run.read_metrics()
    assert [r["step"] for r in metrics if r["split"] == "train"] == list(range(9))
    assert [r["step"] for r in metrics if r["split"] == "validation"] == [4, 8]
    assert {r["step"] for r in spans_of(run)} == set(range(9))
    assert run.checkpoints.last == 9
    with inline_engine(case) as engine:
        events = told(engine.train(range(9), calendar))
    expected, saved = snapshot_of(events, 8).state, run.checkpoints.load(9).state
    for learner, tensors in expected.items():
        assert all(torch.equal(saved[learner][name], t) for name, t in tensors.items())


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


def test_incidents_are_written_down_and_told(run: RunDirectory) -> None:
    recorder = Recorder()
    trainer(run, recorder).record(Incident(3, 1.5, 12, resumed=8, seconds={"ending": 0.5}))
    (line,) = (run.path / "incidents.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["number"], record["steps_lost"], record["action"]) == (
        3,
        4,
        "replaced and replayed",
    )
    assert recorder.heard == [("recovered", 3)]


def test_a_loss_that_is_not_finite_is_an_incident_that_ends_the_run(run: RunDirectory) -> None:
    with pytest.raises(NonFiniteLossError):
        train(run, [], NonFiniteLossError(2, 7, math.nan))
    (line,) = (run.path / "incidents.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["action"], record["step"]) == ("ended", 7)
    assert (record["losses"][0]["name"], record["losses"][0]["kind"]) == ("block2", "not finite")
