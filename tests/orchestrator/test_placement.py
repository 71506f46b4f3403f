"""Plans that fit get their room, a process for each actor; others are refused beforehand."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.util import placement_group_table

from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL
from orchestrator.chain import Chain
from orchestrator.placement import check_fit, even_cpus, free_resources
from orchestrator.placement_groups import Placement
from orchestrator.plan import BlockPlan, Plan
from orchestrator.settings import ResourceSettings
from tests.orchestrator.engines import (
    CPUS,
    Case,
    eventually,
    free_cpus,
    handles,
    is_dead,
    ray_engine,
    start_ray,
)


def plan(*asked: tuple[float, float]) -> Plan:
    """A plan of blocks that ask for (CPUs, GPUs)."""
    return Plan(
        blocks=tuple(
            BlockPlan(
                index=index,
                units=(f"unit{index}",),
                parameters=1,
                input_shape=(4,),
                output_shape=(4,),
                boundary_bytes=16,
                activation_bytes=16,
                cpus=cpus,
                gpus=gpus,
            )
            for index, (cpus, gpus) in enumerate(asked, start=1)
        )
    )


@pytest.mark.parametrize(
    ("asked", "nodes"),
    [
        ([(1, 0)], [{"CPU": 1.0}]),
        ([(1, 0), (1, 0)], [{"CPU": 1.0}, {"CPU": 1.0}]),
        ([(1, 0), (2, 0), (1, 0)], [{"CPU": 2.0}, {"CPU": 2.0}]),
        ([(0.1, 0)] * 10, [{"CPU": 1.0}]),  # 10 * 0.1 is not 1 in binary
        ([(1, 1), (1, 0)], [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]),
        ([(1, 0), (1, 1)], [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}]),  # who needs a GPU goes first
        ([(1, 0.5), (1, 0.5)], [{"CPU": 2.0, "GPU": 1.0}]),
        ([(0.1, 1 / 3)] * 6, [{"CPU": 1.0, "GPU": 2.0}]),  # three on each GPU
        ([(0.1, 0.3), (0.1, 0.7), (0.1, 1)], [{"CPU": 1.0, "GPU": 2.0}]),
        ([(0.1, 0.25)] * 3, [{"CPU": 1.0, "GPU": 0.75}]),  # the rest of one
        ([(0, 0)], [{}]),
    ],
)
def test_plans_that_fit(asked: list[tuple[float, float]], nodes: list[dict[str, float]]) -> None:
    before = [dict(node) for node in nodes]
    check_fit(plan(*asked), nodes)
    assert nodes == before


@pytest.mark.parametrize(
    ("asked", "nodes", "sentence"),
    [
        (
            [(1, 0), (1, 0), (1, 0)],
            [{"CPU": 2.0}],
            "2 and 0 free: lower blocks.count, engine.resources.cpus",
        ),
        ([(2, 0)], [{"CPU": 1.0}, {"CPU": 1.0}], "2 and 0 on one node for block 1), and 2 nodes"),
        ([(1, 0), (1, 1)], [{"CPU": 8.0}], "1 on one node for block 2), and 1 nodes have 8 and 0"),
        ([(1, 1)], [{"CPU": 1.0}, {"GPU": 1.0}], "have 1 and 1 free"),
        ([(0.5, 0.6)] * 2, [{"CPU": 1.0, "GPU": 1.0}], "2 blocks need 1 CPUs and 1.2 GPUs"),
        ([(0.1, 0.6)] * 3, [{"CPU": 1.0, "GPU": 2.0}], "1.8 GPUs (0.1 and 0.6 on one node"),
        ([(0.1, 0.3)] * 7, [{"CPU": 1.0, "GPU": 2.0}], "and 2.1 GPUs"),
        ([(1, 0)], [], "0 nodes have 0 and 0 free"),
    ],
)
def test_plans_that_do_not_fit_are_refused_with_value_limit_and_fix(
    asked: list[tuple[float, float]], nodes: list[dict[str, float]], sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        check_fit(plan(*asked), nodes)
    message = str(raised.value)
    assert sentence in message
    assert message.startswith(f"the plan does not fit the cluster: {len(asked)} blocks need ")
    assert message.endswith(
        "lower blocks.count, engine.resources.cpus or engine.resources.gpus, or add nodes"
    )
    assert "\n" not in message


@given(st.integers(1, 16), st.integers(1, 4))
def test_equal_shares_of_a_gpu_fit_exactly(blocks: int, gpus: int) -> None:
    node = {"CPU": 100.0, "GPU": float(gpus)}
    share = ResourceSettings(gpus=1 / blocks).gpus
    check_fit(plan(*[(1, share)] * (blocks * gpus)), [node])
    with pytest.raises(UserError):
        check_fit(plan(*[(1, share)] * (blocks * gpus + 1)), [node])


def test_share_of_a_gpu_that_rounds_to_none_is_refused() -> None:
    assert ResourceSettings(gpus=0).gpus == 0
    with pytest.raises(ValueError, match=r"gpus = 0.001 is below 0.01: use 0 for the CPU, or 1 /"):
        ResourceSettings(gpus=0.001)


@given(st.integers(0, 400), st.integers(1, 64))
def test_even_cpus_always_fit_together(available: int, blocks: int) -> None:
    share = even_cpus(available / 4, blocks)
    assert 0.01 <= share <= 1
    assert share == 0.01 or share * blocks <= available / 4 + 1e-9
    assert share == 1 or (share + 0.01) * blocks >= available / 4 - 1e-9


@pytest.mark.usefixtures("ray_cluster")
def test_placement_reserves_its_bundles_and_gives_them_back() -> None:
    asked = plan((1, 0), (2.5, 0))
    placement = Placement.now(asked)
    groups = list(placement._groups.values())
    tables = [placement_group_table(group) for group in groups]
    assert [table["state"] for table in tables] == ["CREATED"] * 2
    assert [list(table["bundles"].values()) for table in tables] == [[{"CPU": 1.0}], [{"CPU": 2.5}]]
    assert eventually(lambda: free_resources()[0]["CPU"] == 0.5)
    with pytest.raises(UserError, match="does not fit"):
        check_fit(plan((1, 0)), free_resources())
    other = Placement.now(plan((0.5, 0)))  # of another run at the same time
    other.wait_counted()
    assert eventually(lambda: free_cpus() == 0)
    other.remove()
    placement.remove()
    assert [placement_group_table(group)["state"] for group in groups] == ["REMOVED"] * 2
    assert free_resources()[0]["CPU"] == CPUS
    again = Placement.now(asked)
    again.wait_counted()
    again.remove()


@pytest.mark.usefixtures("ray_cluster")
def test_plan_that_does_not_fit_starts_no_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(chain: Chain) -> None:
        raise AssertionError("an actor was about to start")

    monkeypatch.setattr(Chain, "renew", refuse)
    with pytest.raises(UserError, match="3 blocks need 4.5 CPUs"):
        start_ray(Case(cpus=1.5))
    assert free_cpus() == CPUS


@pytest.mark.usefixtures("ray_cluster")
def test_every_actor_is_a_process_of_its_own_in_the_bundle_of_its_block() -> None:
    def where(shell: Any) -> tuple[int, str, float]:
        import ray
        from ray.util import get_current_placement_group

        assigned = ray.get_runtime_context().get_assigned_resources()
        return os.getpid(), get_current_placement_group().id.hex(), assigned.get("CPU", 0.0)

    case = Case(BLL(feedback=FeedbackSettings(kind="direct")), at=("layer3",), cpus=0.8)
    with ray_engine(case, source="actor") as engine:
        actors = handles(engine)
        found = {n: ray.get(a.__ray_call__.remote(where)) for n, a in actors.items()}
        groups = {k: g.id.hex() for k, g in engine._chain.lanes[0].placement._groups.items()}
    assert sorted(found) == ["block1", "block2", "feedback1", "source"]
    assert len({pid for pid, _, _ in found.values()} | {os.getpid()}) == 5
    assert {name: group for name, (_, group, _) in found.items()} == {
        "source": groups[1],
        "block1": groups[1],
        "feedback1": groups[1],
        "block2": groups[2],
    }
    assert {name: cpus for name, (_, _, cpus) in found.items()} == {
        "source": 0.0,
        "block1": 0.4,
        "feedback1": 0.4,
        "block2": 0.4,
    }
    assert all(is_dead(actor) for actor in actors.values())


def test_counts_that_stay_behind_are_said(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, plan, _ = Case(at=("layer2",)).build()
    reserved = Placement.now(plan)
    reserved.wait_counted()
    assert caplog.text == ""
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.placement_groups.COUNTING_SECONDS", 0.0)
        reserved.remove()
    assert "still counted with this run's placement groups after 0 s" in caplog.text
    reserved._wait_counted(False)  # leave the cluster as the next test expects it
