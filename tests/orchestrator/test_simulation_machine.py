"""A described cluster: paths, devices that blocks share, cores, what messages cost."""

from __future__ import annotations

import math

import pytest

from learning.rules import Backprop, Local
from orchestrator.simulation import in_turns
from tests.orchestrator.machines import FREE, one_node, run, slow_path, times


def test_a_full_path_sets_the_pace() -> None:
    """100 bytes a step through 10 bytes/s: 10 s a step, whatever the blocks take."""
    cluster = FREE.model_copy(update={"between": slow_path(10.0)})
    predicted = run(Local(), 2, size=100, cluster=cluster)
    assert 1 / predicted.steps_per_second == pytest.approx(10.0)
    assert predicted.port_share == pytest.approx(1.0, abs=0.05)
    assert predicted.limit == "bandwidth"


def test_latency_counts_once_a_message() -> None:
    """Backprop on two blocks: F1, x, F2, L2, g, G1, and the next step."""
    cluster = FREE.model_copy(update={"between": slow_path(math.inf, latency=0.25)})
    predicted = run(Backprop(), 2, cluster=cluster)
    assert 1 / predicted.steps_per_second == pytest.approx(2 * 3.0 + 2 * 0.25)


def test_paths_within_a_node_are_not_those_between_nodes() -> None:
    cluster = one_node(2, within=slow_path(100.0), between=slow_path(1.0))
    predicted = run(Local(), 2, size=100, cluster=cluster.model_copy(update={"nodes": 2}))
    assert 1 / predicted.steps_per_second == pytest.approx(3.0)
    across = run(
        Local(), 2, size=100, cluster=cluster.model_copy(update={"nodes": 2, "devices": 1})
    )
    assert 1 / across.steps_per_second == pytest.approx(100.0)


def test_blocks_on_one_device_take_turns() -> None:
    predicted = run(Local(), 4, devices=[0, 0, 1, 1], cluster=one_node(2))
    assert 1 / predicted.steps_per_second == pytest.approx(2 * 3.0)
    assert predicted.idle == pytest.approx([0.0, 0.0], abs=0.1)


def test_interleaving_shrinks_the_bubble() -> None:
    """v = 2 stages a device: a bubble of (D-1) / v instead of D-1, with M a multiple of D."""
    plain = run(Backprop(), 2, 4, devices=[0, 1], seconds=times(2.0, 4.0))
    interleaved = run(Backprop(), 4, 4, devices=in_turns(4, 2))
    assert 1 / plain.steps_per_second == pytest.approx(30.0)
    assert interleaved.steps_per_second > plain.steps_per_second
    # Never below all work of one device and half of the plain bubble.
    assert 1 / interleaved.steps_per_second >= 4 * 2 * 3.0 + 3.0 - 1e-9


def test_speed_and_overhead() -> None:
    cluster = FREE.model_copy(update={"speed": 2.0, "overhead": 0.1})
    predicted = run(Local(), 2, cluster=cluster)
    assert 1 / predicted.steps_per_second == pytest.approx(3.0 / 2 + 3 * 0.1)  # F, L, U


def test_what_messages_cost_at_both_ends() -> None:
    message = {"send": 0.5, "receive": 0.25, "send_per_byte": 0.01}
    cluster = FREE.model_validate({**FREE.model_dump(), "message": message})
    predicted = run(Backprop(), 2, cluster=cluster, size=10)
    each = 0.5 + 0.1 + 0.25
    assert 1 / predicted.steps_per_second == pytest.approx(2 * 3.0 + 2 * each)


def test_cores_are_shared() -> None:
    """Three equal local blocks on two cores: two thirds of the pace of a core each."""
    node = one_node(2, kind="cpu")
    predicted = run(Local(), 3, devices=[0, 0, 1], cluster=node, steps=60)
    assert 1 / predicted.steps_per_second == pytest.approx(3 * 3.0 / 2, rel=0.03)
    assert len(predicted.idle) == 1


def test_background_and_contention() -> None:
    node = one_node(2, kind="cpu", background=0.5)
    busy = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / busy.steps_per_second == pytest.approx(3.0 / 0.75, rel=0.03)
    node = one_node(2, kind="cpu", contention=0.25)
    slower = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / slower.steps_per_second == pytest.approx(3.0 / 0.75, rel=0.03)
    # One block alone sees neither: the other core is free.
    alone = run(Backprop(), 2, devices=[0, 1], cluster=node)
    assert 1 / alone.steps_per_second == pytest.approx(6.0)


def test_threads_that_take_turns_on_a_core_slow_each_other() -> None:
    node = one_node(2, kind="cpu", crowding=0.25)
    alone = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / alone.steps_per_second == pytest.approx(3.0, rel=0.03)
    crowded = run(Local(), 4, devices=[0, 0, 1, 1], cluster=node, steps=60)
    assert 1 / crowded.steps_per_second == pytest.approx(6.0 / 0.75, rel=0.03)
    half = run(Local(), 3, devices=[0, 0, 1], cluster=node, steps=60)
    assert 1 / half.steps_per_second == pytest.approx(4.5 / 0.875, rel=0.03)


def test_a_run_has_only_the_cores_it_was_asked_for() -> None:
    """Two blocks that could work at once take turns on one core of four, and keep it busy."""
    node = one_node(4, kind="cpu")
    one = run(Local(), 2, devices=[0, 0], cluster=node, steps=60)
    assert 1 / one.steps_per_second == pytest.approx(6.0, rel=0.03)
    assert one.idle == pytest.approx([0.0], abs=0.03)
    two = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / two.steps_per_second == pytest.approx(3.0)
    assert two.idle == pytest.approx([0.0], abs=0.03)
    # Three cores of two nodes: the second node gives one.
    pair = node.model_copy(update={"nodes": 2, "devices": 2})
    three = run(Local(), 4, devices=[0, 1, 2, 2], cluster=pair, steps=60)
    assert 1 / three.steps_per_second == pytest.approx(6.0, rel=0.03)
    assert three.idle == pytest.approx([0.5, 0.0], abs=0.03)


def test_what_else_a_node_does_is_on_its_other_cores_first() -> None:
    """Of four cores daemons take 2.5: on two cores of the run only 0.5 of them."""
    node = one_node(4, kind="cpu", background=2.5)
    predicted = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / predicted.steps_per_second == pytest.approx(3.0 / 0.75, rel=0.03)
    # Two busy cores of four share a third of what all four would.
    node = one_node(4, kind="cpu", contention=0.75)
    predicted = run(Local(), 2, devices=[0, 1], cluster=node, steps=60)
    assert 1 / predicted.steps_per_second == pytest.approx(3.0 / 0.75, rel=0.03)
