"""A run inside a placement group, such as a trial's, takes its bundles and asks for no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL
from tests.orchestrator.engines import (
    CALENDAR,
    CPUS,
    STEPS,
    Case,
    eventually,
    free_cpus,
    handles,
    ray_engine,
    told,
)

CASE = Case(BLL(feedback=FeedbackSettings(kind="direct")), at=("layer3",), cpus=0.8)


@contextmanager
def group_of(*bundles: float) -> Iterator[PlacementGroup]:
    group = placement_group([{"CPU": cpus} for cpus in bundles])
    assert group.wait(300)
    try:
        yield group
    finally:
        remove_placement_group(group)
        assert eventually(lambda: free_cpus() == CPUS)


def inside(group: PlacementGroup, function: Any) -> Any:
    """The result of a function that runs in a process of a group, as a trial does."""
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy)
    return ray.get(task.remote())


def where_actors_are() -> dict[str, tuple[str, float, float]]:
    """Of each actor its group, its CPUs and the free CPUs of the cluster while it is there."""

    def where(shell: Any) -> tuple[str, float, float]:
        from ray.util import get_current_placement_group

        group = get_current_placement_group()
        assert group is not None
        assigned = ray.get_runtime_context().get_assigned_resources()
        return group.id.hex(), assigned.get("CPU", 0.0), ray.available_resources().get("CPU", 0.0)

    with ray_engine(CASE, source="actor") as engine:
        actors = handles(engine)
        return {n: ray.get(a.__ray_call__.remote(where)) for n, a in actors.items()}


@pytest.mark.usefixtures("ray_cluster")
def test_actors_are_in_the_bundles_of_the_group_and_nowhere_else() -> None:
    with group_of(0.1, 0.8, 0.8) as group:  # the first one is of whoever made it
        free = CPUS - 1.7
        assert eventually(lambda: abs(free_cpus() - free) < 1e-6)
        found = inside(group, where_actors_are)
    assert {name: cpus for name, (_, cpus, _) in found.items()} == {
        "source": 0.0,
        "block1": 0.4,
        "feedback1": 0.4,
        "block2": 0.4,
    }
    assert {where for where, _, _ in found.values()} == {group.id.hex()}
    assert all(abs(left - free) < 1e-6 for _, _, left in found.values())


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_a_group_has_the_bits_of_any_other() -> None:
    def train() -> list[Any]:
        with ray_engine(CASE) as engine:
            return told(engine.train(range(STEPS), CALENDAR))

    with group_of(0.8, 0.8) as group:
        there = inside(group, train)
    here = train()
    assert len(there) == len(here)
    for a, b in zip(there, here, strict=True):
        assert type(a) is type(b) and a.step == b.step
        assert not hasattr(a, "metrics") or a.metrics == b.metrics


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("bundles", "said"),
    [
        ((0.8,), "has 1 bundles and the plan needs 2: reserve a bundle for each block"),
        ((0.8, 0.5), "bundle 1 of the placement group that this runs in has 0.5 CPUs and 0 GPUs"),
    ],
)
def test_too_little_room_is_refused_at_once(bundles: tuple[float, ...], said: str) -> None:
    """Ray would let an actor without a bundle wait forever."""

    def refused() -> str:
        try:
            with ray_engine(CASE):
                return "it started"
        except UserError as error:
            return str(error)

    with group_of(*bundles) as group:
        assert said in inside(group, refused)


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_actor_comes_back_into_its_bundle() -> None:
    def lose_one() -> tuple[bool, bool]:
        with ray_engine(CASE) as engine:
            (lane,) = engine._chain.lanes
            block = next(actor for actor in lane.actors if actor.learner == "block2")
            before = ray.get(block.handle.identify.remote())
            ray.kill(block.handle)
            block.handle = None
            there = lane.placement.is_there(2)
            engine._chain.make_room()
            engine._chain.renew()
            after = ray.get(block.handle.identify.remote())
            return there, before.process != after.process

    with group_of(0.8, 0.8) as group:
        assert inside(group, lose_one) == (True, True)
