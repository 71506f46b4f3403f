"""Whoever is lost, and when: a run ends with the bits of one without loss."""

from __future__ import annotations

import functools

import pytest

from actors.operations import Kind
from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Local
from learning.settings import AdamWSettings
from orchestrator.losses import ActorLostError
from orchestrator.settings import RecoverySettings, Transport
from tests.orchestrator.engines import (
    CALENDAR,
    CPUS,
    STEPS,
    Case,
    Told,
    differences,
    free_cpus,
    inline_engine,
    is_dead,
    start_ray,
    told,
)
from tests.orchestrator.incidents import Fault, Keeper, State, by_name, run_with
from tests.orchestrator.processes import Processes

pytestmark = pytest.mark.usefixtures("ray_cluster")

CASES = {
    "backprop": Case(Backprop(order="1f1b"), shards=2),
    "local": Case(Local()),
    "bll": Case(BLL(feedback=FeedbackSettings(delay="auto")), optimizer=AdamWSettings(lr=0.003)),
}
U, F = Kind.UPDATE, Kind.FORWARD
FAULTS: dict[str, tuple[str, Transport, list[Fault]]] = {
    # name: case, transport, faults; snapshots come after the steps 24 and 49
    "first block, before any snapshot": ("local", "direct", [Fault("SIGKILL", "block1", (F, 5))]),
    "middle block": ("backprop", "direct", [Fault("SIGKILL", "block2", (U, 30))]),
    "last block": ("bll", "object_store", [Fault("SIGKILL", "block3", (F, 40))]),
    "feedback module": ("bll", "direct", [Fault("SIGKILL", "feedback1", (Kind.TABLE, 30))]),
    "source": ("local", "object_store", [Fault("SIGKILL", "source", (Kind.BATCH, 30))]),
    "two at once": (
        "backprop",
        "object_store",
        [Fault("SIGKILL", "block1", (U, 30), also="block3")],
    ),
    "during a snapshot": ("bll", "direct", [Fault("SIGKILL", "block2", (Kind.SNAPSHOT, 24))]),
    "during recovery": (
        "local",
        "direct",
        [Fault("SIGKILL", "block1", (U, 30)), Fault("SIGKILL", "block2", None)],
    ),
    "a hang": ("local", "direct", [Fault("SIGSTOP", "block2", (U, 30))]),
    "a hang that answers": ("local", "object_store", [Fault("wait", "block1", (U, 30))]),
}


@pytest.fixture(autouse=True)
def _a_step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a snapshot has reached the driver three steps later."""
    monkeypatch.setattr("orchestrator.stream.CHUNK_SECONDS", 0.0)
    # Who is killed is known to be, and who is well answers some time, however slow all are.
    monkeypatch.setattr("orchestrator.stream.STOPPING_SECONDS", 300.0)
    monkeypatch.setattr("orchestrator.calls.ANSWER_SECONDS", 300.0)


@functools.cache
def undisturbed(name: str) -> list[Told]:
    with inline_engine(CASES[name]) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_with_a_loss_ends_with_the_bits_of_one_without(
    name: str, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, transport, faults = FAULTS[name]
    source = "actor" if name == "source" else "block1"
    settings = RecoverySettings(hang=600.0)
    if name.startswith("a hang"):
        settings = RecoverySettings(hang=2.0)
        monkeypatch.setattr("orchestrator.stream.STOPPING_SECONDS", 5.0)
        monkeypatch.setattr("orchestrator.calls.ANSWER_SECONDS", 5.0)
    with processes.engine(CASES[case], 2, transport, source, settings) as engine:
        events, incidents = run_with(engine, faults)
    assert differences(events, undisturbed(case)) == []
    assert free_cpus() == CPUS - processes.reserved
    (incident,) = incidents
    kinds = {"SIGKILL": "actor", "SIGSTOP": "hang", "wait": "hang"}
    assert {loss.name: loss.kind for loss in incident.losses} == {
        name: kinds[fault.kind] for fault in faults for name in (fault.target, fault.also) if name
    }
    at = min(fault.at[1] for fault in faults if fault.at)
    assert incident.resumed == (25 if at > 24 else 0)
    assert at - 2 <= incident.step <= at  # two chunks are under way
    assert incident.steps_lost == incident.step - incident.resumed
    phases = ["noticing", "ending", "starting", "restoring", "replaying"]
    assert list(incident.seconds) == phases
    assert all(loss.process > 0 and loss.node for loss in incident.losses)


def test_two_incidents_after_one_another() -> None:
    faults = [Fault("SIGKILL", "block1", (U, 10)), Fault("SIGKILL", "block2", (U, 10))]
    engine = start_ray(CASES["local"], 2, "direct")
    chain, renew = engine._chain, engine._chain.renew

    def renewed(keep: bool = False) -> None:
        renew(keep)
        if chain.incarnation == 2:
            faults[1].plant(by_name(engine))

    chain.renew = renewed  # type: ignore[method-assign]
    try:
        events, incidents = run_with(engine, faults[:1])
    finally:
        engine.close()
    assert differences(events, undisturbed("local")) == []
    assert [[loss.name for loss in i.losses] for i in incidents] == [["block1"], ["block2"]]
    assert [incident.number for incident in incidents] == [1, 2]
    assert chain.incarnation == 3


def test_a_loss_that_comes_again_and_again_ends_the_run() -> None:
    engine = start_ray(CASES["local"], 2, "direct")
    chain, renew = engine._chain, engine._chain.renew
    fault = Fault("SIGKILL", "block3", (U, 5))

    def renewed(keep: bool = False) -> None:
        renew(keep)
        fault.plant(by_name(engine))

    chain.renew = renewed  # type: ignore[method-assign]
    fault.plant(by_name(engine))
    keeper = Keeper()
    try:
        with pytest.raises(ActorLostError, match="did not get past step [345] in 3 attempts"):
            list(engine.train(range(STEPS), CALENDAR, keeper))
    finally:
        engine.close()
    assert 4 <= len(keeper.incidents) <= 9  # at most three for each of the steps 3, 4 and 5
    assert [i.ended for i in keeper.incidents] == [False] * (len(keeper.incidents) - 1) + [True]
    assert [i.number for i in keeper.incidents] == list(range(1, len(keeper.incidents) + 1))


def test_what_cannot_be_restored_ends_the_run_and_is_recorded(processes: Processes) -> None:
    class Torn(Keeper):
        def restore(self, at_most: int) -> tuple[int, State | None]:
            raise UserError("no checkpoint is whole")

    engine = start_ray(CASES["local"], 2, "direct")
    Fault("SIGKILL", "block2", (U, 3)).plant(by_name(engine))
    keeper = Torn()
    try:
        with pytest.raises(UserError, match="no checkpoint is whole"):
            list(engine.train(range(STEPS), CALENDAR, keeper))
    finally:
        engine.close()
    (incident,) = keeper.incidents
    assert incident.ended and incident.losses[0].name == "block2"
    assert "the run ended" in incident.sentence()
    assert free_cpus() == CPUS - processes.reserved


def test_more_incidents_than_allowed_end_the_run_and_free_the_cluster(processes: Processes) -> None:
    engine = start_ray(CASES["local"], 2, "direct", recovery=RecoverySettings(max_failures=0))
    actors = engine._chain.actors
    Fault("SIGKILL", "block2", (U, 30)).plant(by_name(engine))
    keeper, seen = Keeper(), []
    try:
        with pytest.raises(ActorLostError, match="block2 was lost: .*max_failures = 0"):
            for event in engine.train(range(STEPS), CALENDAR, keeper):
                keeper.keep(event)
                seen.append(event)
    finally:
        handles = [actor.handle for actor in actors if actor.handle is not None]
        engine.close()
    assert len(handles) == 2 and all(is_dead(handle) for handle in handles)
    assert free_cpus() == CPUS - processes.reserved
    assert keeper.asked == []


@pytest.mark.parametrize("way", ["off", "nothing kept"])
def test_a_loss_ends_the_run_where_there_is_no_way_back(way: str, processes: Processes) -> None:
    settings = RecoverySettings(mode="off" if way == "off" else "exact")
    engine = start_ray(CASES["local"], 2, "object_store", recovery=settings)
    Fault("SIGKILL", "block2", (U, 3)).plant(by_name(engine))
    keeper = Keeper() if way == "off" else None
    try:
        with pytest.raises(ActorLostError, match="^block2 was lost: "):
            list(engine.train(range(STEPS), CALENDAR, keeper))
    finally:
        engine.close()
    assert free_cpus() == CPUS - processes.reserved
