"""What holds for every simulated schedule, and what the simulator refuses."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise

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
from orchestrator.dependencies import SOURCE, programs
from orchestrator.program import with_batches
from orchestrator.settings import SourcePlace
from orchestrator.simulation import enough_steps, in_rows, in_turns, simulate
from orchestrator.simulation_routes import Routes
from tests.learning.helpers import Hops
from tests.orchestrator.machines import (
    FREE,
    SOURCES,
    costs_of,
    made_program,
    one_node,
    run,
    slow_path,
    times,
)
from tests.orchestrator.simulator import NOTHING, Simulation

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
    source=st.sampled_from(SOURCES),
)


@given(cases)
@settings(max_examples=150)
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
        made,
        costs,
        cluster,
        devices,
        source=case["source"],
        window=case["window"],
        steps=steps,
        record=True,
    )
    # Every operation once, in its actor's order, none before the one before it ended.
    done = defaultdict(list)
    for work in predicted.work:
        done[work.actor].append(work)
    expected = programs(made, range(steps))
    if case["source"] == "block1":
        del expected[SOURCE]
        expected["block1"] = with_batches(expected["block1"])
    assert {a: [w.operation for w in works] for a, works in done.items()} == expected
    for works in done.values():
        assert all(a.ended <= b.started + 1e-9 for a, b in pairwise(works))
    # All that the operations cost was worked, and no device worked more than there was time for.
    owed = sum(
        costs.operations[SOURCE if batch else w.actor, w.operation.kind].seconds
        for w in predicted.work
        if not (batch := w.operation.kind is Kind.BATCH) or case["kind"] == "cpu"
    )
    worked = sum(predicted.work_a_step) * steps
    if case["kind"] == "cpu":
        routes = Routes(made, case["source"])
        messages = [
            to
            for w in predicted.work
            for to, _ in routes.sends(w.actor, w.operation)
            if to != w.actor
        ]
        owed += len(messages) * case["receive"]
    assert worked == pytest.approx(owed)
    cores = max(devices) + 1 if case["kind"] == "cpu" else 1
    end = predicted.simulated_seconds
    assert all(each * steps <= end * cores + 1e-9 for each in predicted.work_a_step)
    # Steps end in order.
    assert list(predicted.completions) == sorted(predicted.completions)
    assert predicted.completions[-1] <= end + 1e-9


@given(st.sampled_from(RULES), st.integers(1, 5), st.integers(1, 4), st.floats(0.0, 2.0))
@settings(max_examples=60)
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
@pytest.mark.parametrize("source", SOURCES)
def test_routes_are_those_of_the_real_executors(
    rule: Rule, shards: int, source: SourcePlace
) -> None:
    """The executors, on stand-ins for learners, take and send what the simulation does."""
    steps = 7
    made = made_program(rule, 4, shards)
    real = Simulation(made, steps, calendar=NOTHING, window=3, source=source)
    real.run()
    routes = Routes(made, source)
    assert routes.actors() == [actor.name for actor in real.actors]
    sent: Counter = Counter()
    for actor in real.actors:
        assert actor.operations == routes.operations(actor.name, range(steps))
        taken = Counter(key for op in actor.operations for key in routes.takes(actor.name, op))
        assert taken == actor.box.received, actor.name
        for op in actor.operations:
            posts = (
                address for address in routes.sends(actor.name, op) if address.to != actor.name
            )
            sent.update((actor.name, *address) for address in posts)
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


def test_a_thousand_devices() -> None:
    for rule, shards in ((Local(), 1), (Backprop(), 8)):
        predicted = run(rule, 1024, shards)
        assert len(predicted.completions) == enough_steps(made_program(rule, 1024, shards))
    assert 1 / predicted.steps_per_second == pytest.approx((8 + 1023) * 3.0)


def test_places() -> None:
    assert in_rows(6, 3) == [0, 0, 1, 1, 2, 2]
    assert in_rows(3, 3) == [0, 1, 2]
    assert in_rows(5, 2) == [0, 0, 0, 1, 1]
    assert in_turns(6, 3) == [0, 1, 2, 0, 1, 2]
