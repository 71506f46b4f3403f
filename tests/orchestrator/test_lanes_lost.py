"""Losses where there are lanes, and in the middle of a change of the chain."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
import ray
from ray.exceptions import RayError

from actors.operations import Kind
from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL
from orchestrator.arrivals import Arrival
from orchestrator.engine import RayEngine
from orchestrator.lane import Actor
from orchestrator.lane_settings import LaneSettings
from orchestrator.settings import RecoverySettings
from tests.orchestrator.changing import (
    CASES,
    ask_to_move,
    changes,
    follow,
    unlike,
)
from tests.orchestrator.engines import Case, eventually
from tests.orchestrator.incidents import ANY_STEP, Fault, Keeper, by_name

pytestmark = pytest.mark.usefixtures("ray_cluster", "step_a_chunk")
Start = Callable[..., RayEngine]


@pytest.mark.parametrize(
    ("kind", "new"),
    [(Kind.HAND_OVER, False), (Kind.LEAVE, False), (Kind.JOIN, True), (Kind.RESEND, False)],
)
def test_a_loss_in_the_middle_of_a_move_changes_no_bit(
    start_lanes: Start, kind: Kind, new: bool
) -> None:
    case = Case(BLL(feedback=FeedbackSettings(delay=2)), at=("layer3",), cpus=0.4)
    engine, keeper = start_lanes(case, 1, 1), Keeper()
    # Who sends again is the feedback module: it moves with block 1, to which its tables go.
    target = "feedback1" if kind is Kind.RESEND else "block1"

    def move() -> None:
        ask_to_move(engine, [1])
        there = engine._elasticity._move
        assert there is not None
        coming = {actor.name: actor for actor in there.arrival.lane.actors}
        at = coming if new or kind is Kind.RESEND else by_name(engine)
        Fault("SIGKILL", target, (kind, ANY_STEP)).plant(at)

    events = follow(engine, {30: move}, keeper)
    assert len(changes(events)) == 1 and unlike(events, case) == []
    (incident,) = keeper.incidents
    assert incident.resumed == 25
    assert [loss.name for loss in incident.losses] == [target]
    assert engine._chain.spare == []


def test_a_successor_without_a_state_goes_back_when_only_what_was_lost_does(
    start_lanes: Start,
) -> None:
    case = CASES["local"]
    engine = start_lanes(case, 1, 1, recovery=RecoverySettings(mode="local"))
    keeper = Keeper()

    def move() -> None:
        ask_to_move(engine, [2])
        Fault("SIGKILL", "block2", (Kind.HAND_OVER, ANY_STEP)).plant(by_name(engine))

    follow(engine, {30: move}, keeper)
    (incident,) = keeper.incidents
    # The old one is lost, and the new one, which lives, had nothing yet: it is not kept.
    assert set(incident.kept) == {"block1", "block3"} and incident.restored == 25
    steps = keeper.states[50]["block2"]["optimizer.layer2.linear.weight.step"]
    assert int(steps) == 25 + 50 - incident.resumed  # those of the checkpoint, and those since


def test_one_of_two_lanes_is_lost_and_the_other_goes_on(start_lanes: Start) -> None:
    case = CASES["local"]
    engine, keeper = start_lanes(case, 2, 2), Keeper()
    engine._elasticity.settings = LaneSettings(min=1, max=1)
    chain = engine._chain
    events = follow(engine, {30: lambda: ray.kill(chain.lanes[0].actors[1].handle)}, keeper)
    assert unlike(events, case) == []
    (incident,) = keeper.incidents
    assert incident.lanes == 1 and [loss.name for loss in incident.losses] == ["block2"]
    assert [lane.number for lane in chain.lanes] == [2]


def test_a_fault_in_a_lane_that_is_needed_is_recovered_from(start_lanes: Start) -> None:
    case = replace(CASES["bll"], at=("layer3",))
    engine, keeper = start_lanes(case, 2, 2), Keeper()
    fault = Fault("SIGKILL", "feedback1.lane2", (Kind.FEEDBACK_UPDATE, 30))
    fault.plant(by_name(engine))
    assert unlike(follow(engine, {}, keeper), case) == []
    (incident,) = keeper.incidents
    assert [loss.name for loss in incident.losses] == ["feedback1.lane2"]
    assert incident.lanes == 2


@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_lane_that_fails_to_come_is_given_up_and_the_run_goes_on(
    start_lanes: Start, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES["local"]
    engine = start_lanes(case, 1, 1)
    elasticity, cast = engine._elasticity, engine._chain.cast
    poison = _Fatal() if how == "killed" else "nonsense"  # no learner can be made from it

    def poisoned(number: int) -> list[Actor]:
        actors = cast(number)
        actors[2].arguments = (poison, *actors[2].arguments[1:])
        return actors

    def fails() -> None:
        monkeypatch.setattr(engine._chain, "cast", poisoned)
        elasticity.settings = LaneSettings(min=1, max=2)

        def failed() -> bool:
            elasticity.look()
            return elasticity._growth is not None and _has_failed(elasticity._growth)

        assert eventually(failed)

    events = follow(engine, {10: fails})
    assert changes(events) == [] and elasticity._growth is None
    assert "actors that were to come are given up for now" in caplog.text
    assert unlike(events, case) == []


@pytest.mark.parametrize("out_of_reach", ["new", "old"])
def test_a_lane_that_is_out_of_reach_costs_no_incident(
    start_lanes: Start,
    monkeypatch: pytest.MonkeyPatch,
    out_of_reach: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = CASES["local"]
    engine, keeper = start_lanes(case, 1, 1), Keeper()
    chain, elasticity = engine._chain, engine._elasticity
    listen = chain.listen

    def elsewhere(actor: Actor) -> object:
        endpoint = ray.get(listen(actor))
        return ray.put(endpoint._replace(path="\0nowhere", host="127.0.0.1", port=9))

    def look() -> None:
        if out_of_reach == "old":  # nobody asks again what is wired already
            for actor in chain.actors:
                assert actor.endpoint is not None
                actor.endpoint = actor.endpoint._replace(path="\0nowhere")
        elasticity.settings = LaneSettings(min=1, max=2)

        def failed() -> bool:
            elasticity.look()
            growth = elasticity._growth
            found = growth is not None and _has_failed(growth)
            return found or "given up for now" in caplog.text  # before this step, already

        assert eventually(failed)

    if out_of_reach == "new":
        monkeypatch.setattr(chain, "listen", elsewhere)
    events = follow(engine, {10: look}, keeper)
    assert changes(events) == [] and keeper.incidents == []
    assert "actors that were to come are given up for now" in caplog.text
    assert "cannot connect to block" in caplog.text
    assert unlike(events, case) == []


class _Fatal:
    """Ends the process that takes it."""

    def __reduce__(self) -> tuple[object, ...]:
        return signal.raise_signal, (signal.SIGKILL,)


def _has_failed(growth: Arrival) -> bool:
    try:
        growth.is_ready()
    except (RuntimeError, UserError, RayError):
        return True
    return False
