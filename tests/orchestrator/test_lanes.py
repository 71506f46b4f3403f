"""Lanes on actors: any number, coming and going, gives the bits of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from ray.util.placement_group import PlacementGroup, placement_group_table

from orchestrator.engine import RayEngine
from orchestrator.events import Worked
from orchestrator.lane import Lane
from orchestrator.lane_settings import LaneSettings
from tests.orchestrator.changing import (
    CASES,
    ask_to_move,
    changes,
    follow,
    unlike,
    wait_for_growth,
)

pytestmark = pytest.mark.usefixtures("ray_cluster", "step_a_chunk")
Start = Callable[..., RayEngine]


@pytest.mark.parametrize(
    ("name", "lanes", "transport", "source"),
    [
        ("batch norm", 3, "object_store", "actor"),
        ("1f1b", 2, "direct", "block1"),
        ("bll", 2, "direct", "block1"),
    ],
)
def test_several_lanes_end_with_the_bits_of_one_process(
    start_lanes: Start, name: str, lanes: int, transport: str, source: str
) -> None:
    engine = start_lanes(CASES[name], lanes, lanes, transport, source)
    events = follow(engine, {})
    assert unlike(events, CASES[name]) == []
    worked = [event for event in events if isinstance(event, Worked)]
    for lane in engine._chain.lanes:  # each has done its part
        names = {actor.name for actor in lane.actors}
        assert names <= {event.actor for event in worked}
        first = next(a.name for a in lane.actors if a.is_block)
        shards = {s.shard for e in worked if e.actor == first for s in e.spans if s.kind == "F"}
        assert 1 <= len(shards) <= 2


@pytest.mark.parametrize(("name", "transport"), [("batch norm", "object_store"), ("bll", "direct")])
def test_lanes_that_come_and_go_change_no_bit(
    start_lanes: Start, monkeypatch: pytest.MonkeyPatch, name: str, transport: str
) -> None:
    case = replace(CASES[name], cpus=0.3)
    engine = start_lanes(case, 1, 1, transport)
    elasticity, chain = engine._elasticity, engine._chain

    def first_lane_goes() -> None:
        elasticity.settings = LaneSettings(min=1, max=2)
        touched: tuple[Lane, list[int], str] = (chain.lanes[0], [1], "because of a test")
        monkeypatch.setattr(
            elasticity, "_touched", lambda: touched if touched[0] in chain.lanes else None
        )

    def another_comes() -> None:
        assert chain.spare == []
        wait_for_growth(elasticity, 3)

    happens = {
        4: lambda: wait_for_growth(elasticity, 2),
        12: lambda: wait_for_growth(elasticity, 3),
        20: first_lane_goes,
        34: another_comes,
    }
    events = follow(engine, happens)
    assert [change.lanes for change in changes(events)] == [2, 3, 2, 3]
    assert changes(events)[2].what == "lane 1 left, because of a test: now 2"
    assert [lane.number for lane in chain.lanes][:2] == [2, 3]
    assert unlike(events, case) == []


@pytest.mark.parametrize(
    ("name", "block", "transport", "source"),
    [
        ("local", 1, "direct", "actor"),
        ("1f1b", 2, "object_store", "block1"),
        ("bll", 2, "direct", "block1"),
    ],
)
def test_a_block_that_moves_changes_no_bit(
    start_lanes: Start, name: str, block: int, transport: str, source: str
) -> None:
    engine = start_lanes(CASES[name], 1, 1, transport, source)
    chain = engine._chain
    before = {actor.learner: actor.identity for actor in chain.actors}
    events = follow(engine, {20: lambda: ask_to_move(engine, [block])})
    (change,) = changes(events)
    assert change.lanes == 1 and 21 <= change.step <= 24
    assert change.what == f"block{block} moved, because of a test"
    assert unlike(events, CASES[name]) == []
    moved = [n for n, i in before.items() if i not in [a.identity for a in chain.actors]]
    assert moved == [a.learner for a in chain.actors if a.block == block]
    assert chain.spare == []


def test_room_for_another_lane_stays_on_order_and_is_given_back(start_lanes: Start) -> None:
    case = replace(CASES["local"], cpus=1.0)  # of the 4 CPUs three blocks leave one
    engine = start_lanes(case, 1, 2)
    elasticity, ordered = engine._elasticity, list[PlacementGroup]()

    def look() -> None:
        assert elasticity._growth is not None and elasticity._growth.waits
        ordered.extend(elasticity._growth.lane.placement._groups.values())
        states = [placement_group_table(group)["state"] for group in ordered]
        # What is pending is what Ray's autoscaler counts as demand.
        assert states.count("PENDING") >= 2

    assert changes(follow(engine, {30: look})) == []
    engine.close()
    assert [placement_group_table(group)["state"] for group in ordered] == ["REMOVED"] * 3


def test_lanes_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes.max = 1 is below lanes.min = 2: raise it"):
        LaneSettings(min=2, max=1)
