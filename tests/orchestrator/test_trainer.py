"""The trainer records what an engine tells it, and keeps the last and the best checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch

from actors.operations import Span
from learning.errors import NonFiniteLossError, UserError
from orchestrator.events import Evaluated, Worked
from orchestrator.incidents import Incident
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Observer, Trainer
from tests.orchestrator.engines import Case, inline_engine, snapshot_of, told
from tests.orchestrator.recording import (
    RULE,
    Recorder,
    Scripted,
    checkpointed,
    snapshot,
    step_done,
    train,
    trainer,
    validated,
)
from tests.orchestrator.runs import spans_of

pytestmark = pytest.mark.usefixtures("no_fsync")


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


def test_keep_is_the_number_of_the_newest(run: RunDirectory) -> None:
    observers: list[Observer] = []
    events = [event for step in range(5) for event in (step_done(step), snapshot(step))]
    trainer = Trainer(run, run.checkpoints, "0123", RULE, "block2", observers, keep=3)
    trainer.train(Scripted(events), range(5), Calendar())
    assert run.checkpoints.steps() == [3, 4, 5]


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
