"""The simulator against schedules worked out by hand, and what holds for every schedule."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.operations import Kind
from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Interlocking, Local, Rule
from learning.rules.delayed import DelayedGradients
from learning.rules.guided import PeriodicGuidance
from learning.rules.man import MomentumAuxiliary
from orchestrator.dependencies import programs
from orchestrator.simulation import Prediction, enough_steps, in_rows, in_turns, simulate
from orchestrator.simulation_routes import Routes
from tests.learning.helpers import Hops
from tests.orchestrator.machines import (
    FREE,
    costs_of,
    made_program,
    one_node,
    slow_path,
    times,
)
from tests.orchestrator.simulator import NOTHING, Simulation


def run(rule: Rule, blocks: int, shards: int = 1, **more) -> Prediction:
    """Equal blocks, a device each, messages free unless told otherwise."""
    made = made_program(rule, blocks, shards)
    cluster = more.pop("cluster", FREE)
    devices = more.pop("devices", range(blocks))
    window = more.pop("window", 3)
    steps = more.pop("steps", None)
    costs = costs_of(made, more.pop("seconds", times(1.0, 2.0)), **more)
    return simulate(made, costs, cluster, list(devices), window=window, steps=steps, record=True)


# --- schedules by hand ------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("blocks", "shards"), [(1, 1), (2, 1), (2, 4), (4, 4), (4, 8), (3, 2)])
def test_the_bubble_of_a_pipeline(
    order: Literal["gpipe", "1f1b"], blocks: int, shards: int
) -> None:
    """A step takes (M + K - 1) (f + b): M shards, K blocks, no costs between them."""
    predicted = run(Backprop(order=order), blocks, shards)
    assert 1 / predicted.steps_per_second == pytest.approx((shards + blocks - 1) * 3.0)
    assert predicted.completions[0] == pytest.approx((shards + blocks - 1) * 3.0)
    bubble = (blocks - 1) / (shards + blocks - 1)
    assert predicted.idle == pytest.approx([bubble] * blocks)


def test_1f1b_keeps_fewer_shards_than_gpipe() -> None:
    """Block k of K keeps K-k+1 shards where GPipe keeps all M."""
    one, all_of_them = (
        run(Backprop(order=order), 4, 8, activation=1000, size=0) for order in ("1f1b", "gpipe")
    )
    assert one.peak_bytes == (4000, 3000, 2000, 1000)
    assert all_of_them.peak_bytes == (8000,) * 4


def test_local_blocks_go_at_the_pace_of_the_slowest() -> None:
    slow = {("block2", Kind.ASSESS): 4.0}
    predicted = run(Local(), 4, of=slow)
    assert 1 / predicted.steps_per_second == pytest.approx(1.0 + 4.0)
    # Activations leave before the loss: the fill is a forward for each block before the last.
    assert predicted.completions[0] == pytest.approx(1.0 + 5.0)
    assert predicted.idle == pytest.approx([1 - 3 / 5, 0.0, 1 - 3 / 5, 1 - 3 / 5])


def test_the_fill_of_equal_local_blocks() -> None:
    predicted = run(Local(), 5)
    assert predicted.completions[0] == pytest.approx(4 * 1.0 + 3.0)
    assert predicted.completions[1] == pytest.approx(4 * 1.0 + 6.0)


@pytest.mark.parametrize("blocks", [2, 3, 4, 8])
@pytest.mark.parametrize("reach", [1, 2, 3, 8])
def test_a_step_of_n_wise_learning(reach: int, blocks: int) -> None:
    """The task loss's gradient goes through the last N blocks, N (f + b), whatever K is.

    Gradients of nearer losses are done while blocks wait for it: N b and f are less.
    """
    period = 1 / run(Interlocking(reach=reach), blocks).steps_per_second
    assert period == pytest.approx(3.0 * min(reach, blocks))


def test_bll_with_delay_never_waits_for_its_tables() -> None:
    seconds = {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.5, Kind.READOUT: 0.5}
    # Feedback modules beside the blocks: on devices of their own they would not slow them down.
    predicted = run(BLL(), 4, seconds=seconds)
    busy = 1.0 + 2.0 + 0.5 + 0.5 + 0.5
    assert 1 / predicted.steps_per_second == pytest.approx(busy)
    assert predicted.idle[:3] == pytest.approx([0.0] * 3, abs=1e-9)


def test_bll_in_lockstep_waits() -> None:
    """At delay 0 block 1 waits in each step for the tables of all modules above it."""
    seconds = {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.5, Kind.READOUT: 0.5}
    lockstep = run(BLL(feedback=FeedbackSettings(delay=0)), 4, seconds=seconds)
    assert 1 / lockstep.steps_per_second > 5.0


def test_a_window_holds_a_fast_block_back() -> None:
    """Block 1 is ten times as fast; it is never more than the window ahead."""
    fast = {("block1", Kind.FORWARD): 0.1, ("block1", Kind.ASSESS): 0.2}
    predicted = run(Local(), 2, of=fast, window=2, size=1000)
    ends = {
        (work.actor, work.operation.step): work.ended
        for work in predicted.work
        if work.operation.kind is Kind.FORWARD
    }
    starts = {
        (work.actor, work.operation.step): work.started
        for work in predicted.work
        if work.operation.kind is Kind.FORWARD
    }
    # A third message leaves when the first was taken.
    for step in range(2, 20):
        assert ends["block1", step] >= starts["block2", step - 2] - 1e-9
    assert ends["block1", 10] == pytest.approx(starts["block2", 8])
    assert predicted.peak_bytes[1] == 2 * 1000
    assert 1 / predicted.steps_per_second == pytest.approx(3.0)


@pytest.mark.parametrize(("window", "room"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_a_sender_that_met_a_full_window_waits_for_half_of_it(window: int, room: int) -> None:
    """Block 1 takes no time: after the first `window` messages, it sends `room` at a time."""
    fast = {("block1", Kind.FORWARD): 0.0, ("block1", Kind.ASSESS): 0.0}
    predicted = run(Local(), 2, of=fast, window=window, steps=30)
    forwards = [w for w in predicted.work if w.operation.kind is Kind.FORWARD]
    sent = [w.ended for w in forwards if w.actor == "block1"]
    taken = [w.started for w in forwards if w.actor == "block2"]
    assert sent[:window] == [0.0] * window
    for step in range(window, 30):
        oldest = (step - window) // room * room  # those it waits for are up to oldest + room - 1
        assert sent[step] == pytest.approx(taken[oldest + room - 1])
    assert 1 / predicted.steps_per_second == pytest.approx(3.0)


def test_a_sender_hears_of_room_after_the_latency() -> None:
    fast = {("block1", Kind.FORWARD): 0.0, ("block1", Kind.ASSESS): 0.0}
    cluster = FREE.model_copy(update={"between": slow_path(math.inf, 0.5)})
    predicted = run(Local(), 2, of=fast, window=4, steps=30, cluster=cluster)
    forwards = [w for w in predicted.work if w.operation.kind is Kind.FORWARD]
    sent = [w.ended for w in forwards if w.actor == "block1"]
    taken = [w.started for w in forwards if w.actor == "block2"]
    assert sent[4] == sent[5] == pytest.approx(taken[1] + 0.5)


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


# --- what holds for every schedule ------------------------------------------------------------


RULES = [
    Local(),
    BLL(),
    BLL(feedback=FeedbackSettings(kind="direct", delay=1)),
    Backprop(order="gpipe"),
    Backprop(),
    Interlocking(reach=2),
    Interlocking(reach=3),
    Hops(weights={0: 1.0, 1: 1.0}),
    MomentumAuxiliary(),
    DelayedGradients(),
    PeriodicGuidance(),
]

cases = st.builds(
    dict,
    rule=st.sampled_from(RULES),
    blocks=st.integers(1, 5),
    shards=st.integers(1, 4),
    window=st.integers(1, 5),
    devices=st.integers(1, 5),
    kind=st.sampled_from(["cpu", "accelerator"]),
    bandwidth=st.sampled_from([math.inf, 10.0, 1.0]),
    latency=st.sampled_from([0.0, 0.3]),
    receive=st.sampled_from([0.0, 0.1]),
    slow=st.tuples(st.integers(1, 5), st.floats(0.1, 5.0)),
)


@given(cases)
@settings(max_examples=150, deadline=None)
def test_every_operation_runs_once_in_order_and_no_device_does_the_impossible(case: dict) -> None:
    steps, blocks = 6, case["blocks"]
    made = made_program(case["rule"], blocks, case["shards"])
    k, seconds = case["slow"]
    unequal = {(f"block{k}", Kind.FORWARD): seconds}
    kinds = {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.3, Kind.READOUT: 0.2, Kind.BATCH: 0.1}
    costs = costs_of(made, kinds, of=unequal, size=1)
    cluster = one_node(
        case["devices"],
        kind=case["kind"],
        within=slow_path(case["bandwidth"], case["latency"]),
        message={"receive": case["receive"]},
    )
    devices = in_rows(blocks, min(blocks, case["devices"]))
    predicted = simulate(
        made, costs, cluster, devices, window=case["window"], steps=steps, record=True
    )
    # Every operation once, in its actor's order, none before the one before it ended.
    done = defaultdict(list)
    for work in predicted.work:
        done[work.actor].append(work)
    assert {a: [w.operation for w in works] for a, works in done.items()} == programs(
        made, range(steps)
    )
    for works in done.values():
        assert all(a.ended <= b.started + 1e-9 for a, b in pairwise(works))
    # All that the operations cost was worked, and no device worked more than there was time for.
    owed = sum(
        costs.operations[w.actor, w.operation.kind].seconds
        for w in predicted.work
        if w.actor != "source" or case["kind"] == "cpu"
    )
    worked = sum(predicted.work_a_step) * steps
    if case["kind"] == "cpu":
        routes = Routes(made)
        messages = sum(len(list(routes.sends(w.actor, w.operation))) for w in predicted.work)
        owed += messages * case["receive"]
    assert worked == pytest.approx(owed)
    cores = max(devices) + 1 if case["kind"] == "cpu" else 1
    end = predicted.simulated_seconds
    assert all(each * steps <= end * cores + 1e-9 for each in predicted.work_a_step)
    # Steps end in order.
    assert list(predicted.completions) == sorted(predicted.completions)
    assert predicted.completions[-1] <= end + 1e-9


@given(st.sampled_from(RULES), st.integers(1, 5), st.integers(1, 4), st.floats(0.0, 2.0))
@settings(max_examples=60, deadline=None)
def test_a_device_each_is_never_faster_than_the_busiest_block(
    rule: Rule, blocks: int, shards: int, latency: float
) -> None:
    cluster = FREE.model_copy(update={"between": slow_path(math.inf, latency)})
    predicted = run(rule, blocks, shards, cluster=cluster, seconds=times(1.0, 2.0, 0.5))
    busiest = max(predicted.work_a_step)
    steps = len(predicted.completions)
    assert predicted.completions[-1] >= busiest * steps - 1e-6
    assert predicted.completions[-1] <= predicted.simulated_seconds + 1e-9


@pytest.mark.parametrize(
    "rule",
    [*RULES, Hops(weights={2: 1.0}), Backprop(order="gpipe")],
    ids=lambda rule: rule.kind,
)
@pytest.mark.parametrize("shards", [1, 3])
def test_routes_are_those_of_the_real_executors(rule: Rule, shards: int) -> None:
    """The executors, on stand-ins for learners, take and send what the simulation does."""
    steps = 7
    made = made_program(rule, 4, shards)
    real = Simulation(made, steps, calendar=NOTHING, window=3)
    real.run()
    routes = Routes(made)
    sent: Counter = Counter()
    for actor in real.actors:
        taken = Counter(key for op in actor.operations for key in routes.takes(actor.name, op))
        assert taken == actor.box.received, actor.name
        for op in actor.operations:
            sent.update((actor.name, *address) for address in routes.sends(actor.name, op))
    pipes = real.pipes()
    assert sent == Counter(
        {(a, b, key): n for (a, b), pipe in pipes.items() for key, n in pipe.sent.items()}
    )


# --- bad input and size -----------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    made = made_program(Local(), 3)
    costs = costs_of(made, times(1.0, 1.0))
    with pytest.raises(UserError, match=r"2 devices are given for 3 blocks: give each block one"):
        simulate(made, costs, FREE, [0, 1])
    with pytest.raises(UserError, match=r"on 3 devices and the cluster has 2: .* more nodes"):
        simulate(made, costs, one_node(2), [0, 1, 2])
    with pytest.raises(UserError, match=r"steps = 1 is less than 2"):
        simulate(made, costs, FREE, [0, 1, 2], steps=1)
    with pytest.raises(UserError, match=r"no operation 'U' of block1: measure them"):
        less = {at: c for at, c in costs.operations.items() if at != ("block1", Kind.UPDATE)}
        simulate(made, costs.__class__(**{**vars(costs), "operations": less}), FREE, [0, 1, 2])
    with pytest.raises(UserError, match=r"0 seconds throughout: measure them"):
        simulate(made, costs_of(made, {}), FREE, [0, 1, 2])
    with pytest.raises(UserError, match=r"no size of message 'x' from source"):
        bare = {at: c.__class__(seconds=c.seconds) for at, c in costs.operations.items()}
        simulate(made, costs.__class__(**{**vars(costs), "operations": bare}), FREE, [0, 1, 2])


def test_a_thousand_devices_take_seconds() -> None:
    for rule, shards in ((Local(), 1), (Backprop(), 8)):
        predicted = run(rule, 1024, shards)
        assert predicted.seconds < 60
        assert len(predicted.completions) == enough_steps(made_program(rule, 1024, shards))
    assert 1 / predicted.steps_per_second == pytest.approx((8 + 1023) * 3.0)


def test_places() -> None:
    assert in_rows(6, 3) == [0, 0, 1, 1, 2, 2]
    assert in_rows(3, 3) == [0, 1, 2]
    assert in_rows(5, 2) == [0, 0, 0, 1, 1]
    assert in_turns(6, 3) == [0, 1, 2, 0, 1, 2]
