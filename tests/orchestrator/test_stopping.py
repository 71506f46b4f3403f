"""A run that is asked to stop ends at a step boundary, and what was finished is in a snapshot."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from actors.operations import Kind
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Local
from orchestrator.events import Engine, Event, SnapshotTaken, StepDone
from orchestrator.losses import ActorLostError
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.settings import RecoverySettings, Transport
from orchestrator.stopping import Stopping
from orchestrator.trainer import Trainer
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    Told,
    differences,
    inline_engine,
    told,
)
from tests.orchestrator.incidents import Fault, Keeper, by_name
from tests.orchestrator.processes import Processes
from tests.orchestrator.recording import RULE, Scripted, checkpointed, step_done

TERM = signal.SIGTERM
CASES = {
    "local": Case(Local()),
    "backprop": Case(Backprop(order="1f1b"), shards=2),
    "bll": Case(BLL(feedback=FeedbackSettings(delay="auto"))),
}
SPARSE = replace(CALENDAR, snapshots=frozenset({STEPS - 1}))


def test_a_request_raises_but_where_somebody_looks() -> None:
    stopping = Stopping()
    with stopping.patiently():
        stopping.ask(TERM)
        assert stopping.asked and stopping.number == TERM
        with pytest.raises(KeyboardInterrupt):
            stopping.ask(signal.SIGINT)
    assert stopping.code == 143  # of the first
    with pytest.raises(KeyboardInterrupt):
        Stopping().ask(TERM)


def test_nobody_waits_for_what_is_not_patient() -> None:
    stopping = Stopping()
    with stopping.patiently():
        with pytest.raises(KeyboardInterrupt), stopping.patiently(False):
            stopping.ask(TERM)
        with pytest.raises(KeyboardInterrupt), stopping.patiently(False):
            raise AssertionError("it was asked before")


def stopped(engine: Engine, calendar: Calendar, at: int) -> list[Event]:
    """All events of a run that is asked to stop when a step is told; -1: before it begins."""
    stopping, events = Stopping(), list[Event]()
    with stopping.patiently():
        if at < 0:
            stopping.ask(TERM)
        for event in engine.train(range(STEPS), calendar, Keeper(), stopping):
            events.append(event)
            if isinstance(event, StepDone) and event.step == at:
                stopping.ask(TERM)
    return events


def whole(case: Case, calendar: Calendar) -> list[Told]:
    with inline_engine(case) as engine:
        return told(engine.train(range(STEPS), calendar))


def gone_on(case: Case, events: list[Event], calendar: Calendar) -> list[Told]:
    """What was told until the stop, and after it by another engine."""
    before = told(events)
    last = before[-1]
    assert isinstance(last, SnapshotTaken)
    with inline_engine(case) as engine:
        engine.load(last.state, last.step + 1)
        after = told(engine.train(range(last.step + 1, STEPS), calendar))
    extra = [] if last.step in calendar.snapshots else before[-1:]
    return [event for event in before if event not in extra] + after


@pytest.mark.parametrize("at", [0, 10, 24, 37])
def test_the_sequential_engine_stops_after_the_step(at: int) -> None:
    case = CASES["bll"]
    with inline_engine(case) as engine:
        events = stopped(engine, SPARSE, at)
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(at + 1))
    assert differences(gone_on(case, events, SPARSE), whole(case, SPARSE)) == []


def test_before_the_first_step_there_is_nothing_to_keep() -> None:
    with inline_engine(CASES["local"]) as engine:
        assert stopped(engine, CALENDAR, -1) == []


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "transport", "at", "chunk"),
    [
        ("local", "direct", 0, 1),
        ("local", "object_store", 10, 3),
        ("backprop", "direct", 24, 2),
        ("backprop", "object_store", STEPS - 2, 1),
        ("local", "direct", -1, 1),
        pytest.param("bll", "object_store", 23, 4, marks=pytest.mark.long),
        pytest.param("bll", "direct", 24, 1, marks=pytest.mark.long),
    ],
)
def test_actors_stop_at_one_step_of_all(
    name: str,
    transport: Transport,
    at: int,
    chunk: int,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.stream._chunk_length", lambda *_: chunk)
    case = CASES[name]
    with processes.engine(case, 2, transport) as engine:
        events = stopped(engine, SPARSE, at)
    done = [e.step for e in events if isinstance(e, StepDone)]
    assert done == list(range(len(done)))
    # Nothing is begun that was not handed out: two chunks at each actor.
    assert len(done) <= min(at + 1 + 3 * chunk, STEPS) if at >= 0 else not events
    if events:
        assert differences(gone_on(case, events, SPARSE), whole(case, SPARSE)) == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_while_stopping_is_not_recovered_from(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take longer than who wants the end waits, and lead back to what is kept."""
    # However fast the actors are, not all steps are handed out when the end is asked for.
    monkeypatch.setattr("orchestrator.stream._chunk_length", lambda *_: 1)
    engine_settings = RecoverySettings(hang=1.0)
    stopping, keeper = Stopping(), Keeper()
    with (
        pytest.raises(ActorLostError),
        processes.engine(CASES["local"], 2, "direct", "block1", engine_settings) as engine,
        stopping.patiently(),
    ):
        Fault("SIGKILL", "block2", (Kind.SNAPSHOT, -1)).plant(by_name(engine))
        for event in engine.train(range(STEPS), SPARSE, keeper, stopping):
            if isinstance(event, StepDone) and event.step == 3:
                stopping.ask(TERM)
    assert keeper.asked == []


class Asking(Scripted):
    """An engine whose last event is the end that was asked for."""

    def __init__(self, stopping: Stopping, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._stopping = stopping

    def train(self, *arguments: object, **named: object):  # type: ignore[no-untyped-def,override]
        self._stopping.ask(TERM)
        return super().train(*arguments, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [None, ActorLostError("block1 was lost")], ids=["", "lost"])
def test_the_trainer_keeps_the_state_and_ends(
    run: RunDirectory, error: Exception | None, no_fsync: None
) -> None:
    stopping = Stopping()
    trainer = Trainer(run, run.checkpoints, "0123", RULE, "block2", stopping=stopping)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(Asking(stopping, checkpointed(4, 0.5), error), range(9), Calendar())
    assert run.state.steps == run.checkpoints.last == 5


def test_a_run_that_is_at_its_end_has_finished(run: RunDirectory, no_fsync: None) -> None:
    stopping = Stopping()
    trainer = Trainer(run, run.checkpoints, "0123", RULE, "block2", stopping=stopping)
    events = [*checkpointed(4, 0.5), step_done(5)]
    trainer.train(Asking(stopping, events), range(6), Calendar())
    assert stopping.asked and not stopping.is_patient
