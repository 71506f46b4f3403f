"""The programs of all actors together: every order ends, and local rules run ahead."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.operations import Kind
from learning.learners.feedback import FeedbackSettings
from learning.learners.publishing import Reading
from learning.rules import (
    BLL,
    Backprop,
    DelayedGradients,
    DirectAlignment,
    Local,
    PeriodicGuidance,
    Rule,
)
from orchestrator.program import Calendar, block_program
from tests.learning.helpers import Hops
from tests.orchestrator.simulator import NOTHING, Simulation, program

HOPS = st.dictionaries(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), st.just(1.0), min_size=1)


class Readers(Local):
    """Local learning in which every block reads weights of the next and block 1 of the last."""

    every: int = 1

    def readings(self, last: int) -> list[Reading]:
        to = {k: k + 1 for k in range(2, last)} | ({1: last} if last > 1 else {})
        return [Reading(k, publisher, 0, self.every) for k, publisher in to.items()]


FEEDBACK = st.builds(
    FeedbackSettings,
    kind=st.sampled_from(["chain", "direct"]),
    delay=st.one_of(st.just("auto"), st.integers(0, 6)),
)
RULES = st.one_of(
    st.builds(Backprop, order=st.sampled_from(["gpipe", "1f1b"])),
    st.just(Local()),
    st.builds(BLL, feedback=FEEDBACK),
    st.builds(DelayedGradients, lag=st.integers(0, 3)),
    st.builds(PeriodicGuidance, period=st.just(3), guided=st.integers(1, 3)),
    st.builds(Readers, every=st.integers(1, 3)),
    st.just(DirectAlignment()),
    st.builds(Hops, weights=HOPS, order=st.sampled_from(["gpipe", "1f1b"])),
)


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    steps = draw(st.integers(1, 7))
    splits = st.sampled_from([("validation",), ("test",), ("validation", "test")])
    calendar = Calendar(
        draw(st.dictionaries(st.integers(0, steps - 1), splits, max_size=3)),
        draw(st.frozensets(st.integers(0, steps - 1), max_size=2)),
        {"validation": draw(st.integers(1, 9)), "test": draw(st.integers(1, 3))},
    )
    made = program(draw(RULES), draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    return Simulation(made, steps, calendar, draw(st.integers(1, 4)), draw(st.integers(0, steps)))


@given(simulations(), st.integers(0, 2**32))
@settings(max_examples=150)
def test_every_order_ends_with_every_message_received_once(
    simulation: Simulation, seed: int
) -> None:
    simulation.run(seed)
    made, shards = simulation.program, simulation.program.settings.shards
    for learner in (*simulation.blocks, *simulation.feedback):
        assert learner.updates == list(range(simulation.steps))
    for actor in simulation.actors:
        assert actor.box.waiting() == simulation.unused(actor), actor.name
        assert set(actor.box.received.values()) <= {1}
    for pipe in simulation.pipes().values():
        assert set(pipe.sent.values()) <= {1}
        assert pipe.receiver.received.keys() | pipe.receiver.waiting() >= pipe.sent.keys()
        if pipe.window is not None:
            assert pipe.most <= pipe.window == simulation.window * shards
    for actor in simulation.actors:  # what has no window is bounded by the data flow
        assert actor.box.most["table"] <= made.feedback_delay + 1
        assert actor.box.most["raw"] <= made.feedback_delay + 2
        lag = made.rule.credit.delay(1, 2)
        assert actor.box.most["g"] <= shards * (made.blocks + lag)
        assert actor.box.most["weights"] <= 2 * made.blocks
        assert actor.box.most["readout"] <= (made.feedback_delay + 2) * shards


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=60)
def test_memory_of_a_block(blocks: int, shards: int, window: int, seed: int) -> None:
    """How many shards' activations a block holds at most, under each rule."""
    expected = {
        Local(): [1] * blocks,
        BLL(): [1] * blocks,
        Backprop(order="gpipe"): [shards] * blocks,
        Backprop(order="1f1b"): [min(shards, blocks - k) for k in range(blocks)],
    }
    for rule, most in expected.items():
        simulation = Simulation(program(rule, blocks, shards), 3, NOTHING, window)
        simulation.run(seed)
        assert [block.most_pending for block in simulation.blocks] == most


def lead(rule: Rule, window: int, prefer: dict[str, float]) -> int:
    """How many updates block 1 of 3 gets ahead of block 3 when it is preferred."""
    simulation = Simulation(program(rule, 3, 2), 20, NOTHING, window)
    leads: list[int] = []
    simulation.run(
        prefer=lambda actor: prefer.get(actor.name, 0.0),
        watch=lambda s: leads.append(len(s.blocks[0].updates) - len(s.blocks[2].updates)),
    )
    return max(leads)


EARLY_FIRST = {"source": 4.0, "block1": 3.0, "block2": 2.0, "block3": -1.0}


@pytest.mark.parametrize("window", [1, 2, 4])
def test_local_blocks_run_ahead_by_their_windows(window: int) -> None:
    """Block 3 holds back nothing but what the windows before it hold."""
    assert lead(Local(), window, EARLY_FIRST) == 2 * window + 1


def test_delayed_feedback_lets_blocks_run_ahead_and_lockstep_does_not() -> None:
    delayed = BLL(feedback=FeedbackSettings(delay=4))
    assert lead(delayed, 4, EARLY_FIRST) > lead(
        BLL(feedback=FeedbackSettings(delay=0)), 4, EARLY_FIRST
    )
    assert lead(delayed, 4, EARLY_FIRST) >= 4


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
def test_backprop_starts_no_step_before_the_update_of_the_last(
    order: Literal["gpipe", "1f1b"],
) -> None:
    """All blocks are within one update of each other, whatever the window."""
    rule = Backprop(order=order)
    assert lead(rule, 4, EARLY_FIRST) == 1  # block 3 has only its own update left to do
    made = program(rule, 3, 4)
    for k in (1, 2, 3):
        updated = -1
        for op in block_program(made, k, NOTHING, range(5)):
            assert op.step == updated + 1
            updated = op.step if op.kind is Kind.UPDATE else updated
    simulation = Simulation(made, 6, NOTHING, 4)

    def check(now: Simulation) -> None:
        for first, second in pairwise(now.blocks):
            assert abs(len(first.updates) - len(second.updates)) <= 1
            if second.pending:  # it has begun a step, so the one before it has ended the last
                assert len(first.updates) >= len(second.updates)

    simulation.run(3, watch=check)


def test_simulator_finds_deadlocks() -> None:
    """A program that waits for a gradient before it has sent its activation never ends."""
    simulation = Simulation(program(Backprop(), 2, 1), 2, NOTHING, 1)
    first = simulation.block_actors[0]
    first.operations = [first.operations[1], first.operations[0], *first.operations[2:]]
    with pytest.raises(AssertionError, match="deadlock"):
        simulation.run()


def test_simulator_finds_deadlocks_of_windows() -> None:
    """A block that takes the last shard first needs a window for all of them."""

    def backwards(window: int) -> Simulation:
        simulation = Simulation(program(Backprop(order="gpipe"), 2, 3), 1, NOTHING, 1)
        second = simulation.block_actors[1]
        second.operations = [*reversed(second.operations[:3]), *second.operations[3:]]
        simulation.pipes()["block1", "block2"].window = window
        return simulation

    backwards(3).run()
    with pytest.raises(AssertionError, match="deadlock"):
        backwards(2).run()
