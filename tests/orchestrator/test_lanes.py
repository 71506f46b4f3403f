"""Lanes on actors: any number, coming and going, gives the bits of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from actors.operations import Kind
from learning.learners.feedback import FeedbackSettings
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop, Local
from orchestrator.calls import result
from orchestrator.chain import Chain, Transport
from orchestrator.elasticity import LaneSettings
from orchestrator.engine import RayEngine
from orchestrator.events import Changed, Event, StepDone
from orchestrator.lane import Lane
from orchestrator.recovery import RecoverySettings
from tests.orchestrator.engines import (
    CALENDAR,
    CPUS,
    EVALUATION_BATCH,
    STEPS,
    Case,
    Told,
    differences,
    eventually,
    free_cpus,
    inline_engine,
    told,
)
from tests.orchestrator.incidents import Fault, Keeper

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]

CPU = 0.4  # a block: three lanes of three blocks fit
NORMED = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)
CASES = {
    "local": Case(Local(), shards=4, cpus=CPU),
    "batch norm": Case(Local(), NORMED, shards=4, cpus=CPU),
    "1f1b": Case(Backprop(order="1f1b"), shards=4, cpus=CPU),
    "bll": Case(BLL(feedback=FeedbackSettings(delay="auto")), shards=4, cpus=CPU),
}


@pytest.fixture(autouse=True)
def _a_step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that something can change before every step."""
    monkeypatch.setattr("orchestrator.stream.CHUNK_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.elasticity.LOOK_SECONDS", 0.0)


@pytest.fixture
def start() -> Iterator[Callable[..., RayEngine]]:
    """Engines with lanes, closed afterwards."""
    engines: list[RayEngine] = []

    def starting(
        case: Case, least: int, most: int, transport: Transport = "direct", source: str = "block1"
    ) -> RayEngine:
        program, plan, blocks = case.build()
        chain = Chain(
            program,
            plan,
            blocks,
            case.data,
            case.augment,
            evaluation_batch=EVALUATION_BATCH,
            threads=1,
            window=2,
            transport=transport,
            source=source,  # pyright: ignore[reportArgumentType]
            lanes=least,
            grows=True,
        )
        settings = LaneSettings(min=least, max=most)
        engines.append(RayEngine(chain, RecoverySettings(), settings))
        return engines[-1]

    yield starting
    for engine in engines:
        engine.close()
    assert eventually(lambda: free_cpus() == CPUS)


def alone(case: Case) -> list[Told]:
    with inline_engine(case) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


def follow(engine: RayEngine, at: dict[int, Callable[[], None]]) -> list[Event]:
    """All events of a run in which something is done when these steps are told."""
    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
        if isinstance(event, StepDone) and event.step in at:
            at[event.step]()
    return events


def told_alike(events: list[Event], case: Case) -> list[str]:
    return differences(told(events), alone(case))


@pytest.mark.parametrize(
    ("name", "lanes", "transport", "source"),
    [
        ("batch norm", 3, "object_store", "actor"),
        ("1f1b", 2, "direct", "block1"),
        ("bll", 2, "direct", "block1"),
    ],
)
def test_several_lanes_end_with_the_bits_of_one_process(
    start: Callable[..., RayEngine], name: str, lanes: int, transport: str, source: str
) -> None:
    engine = start(CASES[name], lanes, lanes, transport, source)
    assert len(engine._chain.lanes) == lanes
    assert told_alike(follow(engine, {}), CASES[name]) == []


@pytest.mark.parametrize(("name", "transport"), [("batch norm", "object_store"), ("bll", "direct")])
def test_lanes_that_come_and_go_change_no_bit(
    start: Callable[..., RayEngine],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    transport: str,
) -> None:
    case = replace(CASES[name], cpus=0.3)
    engine = start(case, 1, 3, transport)
    elasticity, chain = engine._elasticity, engine._chain

    def wait_for_growth() -> None:
        def ready() -> bool:
            elasticity.look()
            return elasticity._growth is not None and elasticity._growth.is_ready()

        assert eventually(ready)

    def first_lane_goes() -> None:
        elasticity.settings = LaneSettings(min=2, max=2)
        touched: tuple[Lane, list[int], str] = (chain.lanes[0], [1], "because of a test")
        monkeypatch.setattr(
            elasticity, "_touched", lambda: touched if touched[0] in chain.lanes else None
        )

    events = follow(engine, {4: wait_for_growth, 12: wait_for_growth, 24: first_lane_goes})
    changes = [e for e in events if isinstance(e, Changed)]
    assert [c.lanes for c in changes] == [2, 3, 2]
    assert "lane 1 left, because of a test" in changes[2].what
    assert [lane.number for lane in chain.lanes] == [2, 3]
    assert told_alike(events, case) == []


@pytest.mark.parametrize(
    ("name", "block", "transport", "source"),
    [
        ("local", 1, "direct", "actor"),
        ("1f1b", 2, "object_store", "block1"),
        ("bll", 2, "direct", "block1"),
    ],
)
def test_a_block_that_moves_changes_no_bit(
    start: Callable[..., RayEngine], name: str, block: int, transport: str, source: str
) -> None:
    engine = start(CASES[name], 1, 1, transport, source)
    chain, elasticity = engine._chain, engine._elasticity
    before = {actor.learner: actor.identity for actor in chain.actors}

    def move() -> None:
        elasticity.ask_to_move(chain.lanes[0], [block], "because of a test")
        there = elasticity._move
        assert there is not None and eventually(there.arrival.is_ready)

    events = follow(engine, {20: move})
    (change,) = (e for e in events if isinstance(e, Changed))
    assert change.lanes == 1 and f"block{block}" in change.what and 21 <= change.step <= 24
    assert told_alike(events, CASES[name]) == []
    moved = [n for n, i in before.items() if i not in [a.identity for a in chain.actors]]
    assert moved == [a.learner for a in chain.actors if a.block == block]


def test_one_of_two_lanes_is_lost_and_the_other_goes_on(
    start: Callable[..., RayEngine],
) -> None:
    case = CASES["local"]
    engine = start(case, 2, 2)
    engine._elasticity.settings = LaneSettings(min=1, max=1)
    chain = engine._chain

    def kill() -> None:
        ray.kill(chain.lanes[0].actors[1].handle)

    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
        if isinstance(event, StepDone) and event.step == 30 and len(chain.lanes) == 2:
            kill()
    assert told_alike(events, case) == []
    (incident,) = keeper.incidents
    assert incident.lanes == 1 and [loss.name for loss in incident.losses] == ["block2"]
    assert [lane.number for lane in chain.lanes] == [2]


def test_room_for_another_lane_stays_on_order_and_is_given_back(
    start: Callable[..., RayEngine],
) -> None:
    case = replace(CASES["local"], cpus=1.0)  # of the 4 CPUs three blocks leave one
    engine = start(case, 1, 2)
    elasticity, ordered = engine._elasticity, list[PlacementGroup]()

    def look() -> None:
        assert elasticity._growth is not None and elasticity._growth.waits
        ordered.extend(elasticity._growth.lane.placement._groups.values())
        states = [placement_group_table(group)["state"] for group in ordered]
        # What is pending is what Ray's autoscaler counts as demand.
        assert states.count("PENDING") >= 2

    events = follow(engine, {30: look})
    assert not [e for e in events if isinstance(e, Changed)]
    engine.close()
    assert [placement_group_table(group)["state"] for group in ordered] == ["REMOVED"] * 3


def test_a_lane_that_fails_to_come_is_given_up_and_the_run_goes_on(
    start: Callable[..., RayEngine],
) -> None:
    case = CASES["local"]
    engine = start(case, 1, 2)
    elasticity = engine._elasticity

    def kill() -> None:
        def started() -> bool:
            elasticity.look()
            return elasticity._growth is not None and (
                elasticity._growth.is_ready() or not elasticity._growth.waits
            )

        assert eventually(started)
        assert elasticity._growth is not None
        actor = elasticity._growth.lane.actors[2]
        ray.kill(actor.handle)

        def gone() -> bool:
            try:
                result(actor, actor.handle.identify.remote())
            except RuntimeError:
                return True
            return False

        assert eventually(gone)

    events = follow(engine, {10: kill})
    assert not [e for e in events if isinstance(e, Changed)]
    assert elasticity._growth is None
    assert told_alike(events, case) == []


def test_a_fault_in_a_second_lane_is_recovered_from(start: Callable[..., RayEngine]) -> None:
    case = CASES["bll"]
    engine = start(case, 2, 2)
    actors = {actor.name: actor for actor in engine._chain.actors}
    Fault("SIGKILL", "feedback1.lane2", (Kind.FEEDBACK_UPDATE, 30)).plant(actors)
    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
    assert told_alike(events, case) == []
    (incident,) = keeper.incidents
    assert [loss.name for loss in incident.losses] == ["feedback1.lane2"]
    assert incident.lanes == 2
