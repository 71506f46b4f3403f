"""Bounds worked out by hand, on costs made up by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.operations import Kind
from learning.build import Program
from learning.learners.feedback import FeedbackSettings
from learning.rules import (
    BLL,
    Backprop,
    DelayedGradients,
    DirectAlignment,
    Interlocking,
    Local,
    MomentumAuxiliary,
    PeriodicGuidance,
    Rule,
)
from orchestrator.costs import Costs, OperationCost
from orchestrator.dependencies import in_order, programs
from orchestrator.findings import sentences, table
from orchestrator.gathered import Sent
from orchestrator.limits import Work, limit, operations_a_step, period_of, works
from tests.orchestrator.simulator import program

SECONDS = {Kind.FORWARD: 1.0, Kind.ASSESS: 2.0, Kind.GRADIENT: 2.0, Kind.UPDATE: 1.0}
FEEDBACK = {Kind.TABLE: 1.0, Kind.READOUT: 1.0, Kind.FEEDBACK_UPDATE: 1.0}
RULES = [
    Local(),
    Backprop(order="gpipe"),
    Backprop(order="1f1b"),
    Interlocking(),
    DirectAlignment(),
    DelayedGradients(),
    PeriodicGuidance(period=3),
    MomentumAuxiliary(every=2),
    BLL(feedback=FeedbackSettings(delay=0)),
    BLL(),
]


def costs(
    made: Program,
    special: Mapping[tuple[str, Kind], float] | None = None,
    sends: Mapping[tuple[str, Kind], tuple[Sent, ...]] | None = None,
    kept: Mapping[str, int] | None = None,
    state: Mapping[str, int] | None = None,
) -> Costs:
    """1 s a forward, table, readout or update, 2 s a backward, but for the special ones."""
    usual = {**SECONDS, **FEEDBACK}
    which = {(n, op.kind) for n, ops in programs(made, range(20)).items() for op in ops}
    operations = {
        (name, kind): OperationCost(
            seconds=(special or {}).get((name, kind), usual.get(kind, 0.0)),
            sends=(sends or {}).get((name, kind), ()),
        )
        for name, kind in which
    }
    return Costs(
        operations=operations, activation_bytes=kept or {}, state_bytes=state or {}, threads=1
    )


def bound(rule: Rule, blocks: int, shards: int = 1, **special: float) -> tuple[float, str]:
    """The period and its chain; `block2_F=3.0` makes an operation special."""
    made = program(rule, blocks, shards)
    keys = {(n.split("_")[0], Kind(n.split("_")[1])): s for n, s in special.items()}
    found = limit(made, costs(made, keys))
    return found.period, " ".join(found.chain)


def test_local_blocks_run_at_the_pace_of_the_slowest() -> None:
    assert bound(Local(), 3, block2_F=3.0) == (pytest.approx(6.0), "block2")
    assert bound(Local(), 3, shards=4, block1_F=2.0) == (pytest.approx(4 * 4.0 + 1), "block1")


def test_a_slow_source() -> None:
    assert bound(Local(), 2, source_batch=10.0) == (pytest.approx(10.0), "source")


def test_backprop_goes_through_all_blocks() -> None:
    # F1 F2 F3 L3 G2 G1 U1, then F1 of the next step.
    assert bound(Backprop(), 3) == (pytest.approx(10.0), "block1 block2 block3")
    assert bound(Backprop(), 1) == (pytest.approx(4.0), "block1")


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
def test_pipelines_drain_at_each_update(order: str) -> None:
    """Two blocks, four shards, no time for updates: 15 s, worked out shard by shard.

    gpipe: block 2's forwards end at 2, 3, 4, 5 and its losses at 7, 9, 11, 13; G3 of block 1 at 15.
    1f1b: block 2's losses end at 4, 7, 10, 13, and G3 of block 1 at 15.
    """
    rule = Backprop.model_validate({"order": order})
    period, chain = bound(rule, 2, 4, block1_U=0.0, block2_U=0.0)
    assert (period, chain) == (pytest.approx(15.0), "block1 block2")


def test_lockstep_feedback_waits_for_itself() -> None:
    """At delay 0: L1, R1, V1, B1 of the next step, L1. At delay K it spans several steps."""
    lockstep = BLL(feedback=FeedbackSettings(delay=0))
    assert bound(lockstep, 2) == (pytest.approx(5.0), "block1 feedback1")
    assert bound(BLL(), 2, block1_F=1.5) == (pytest.approx(4.5), "block1")
    assert bound(BLL(), 2, feedback1_V=7.0) == (pytest.approx(9.0), "feedback1")


def test_phases_are_averaged() -> None:
    """Guided: F1 F2 L2 G1 U1, 7 s; then F1 L1 U1, 4 s."""
    rule = PeriodicGuidance(period=2, guided=1)
    assert bound(rule, 2) == (pytest.approx(5.5), "block1 block2")


def test_work_and_limit_of_a_very_long_period_are_of_the_same_steps() -> None:
    """Guided are steps 0 to 9 of 5000, all before the 2000 steps that are looked at."""
    made = program(PeriodicGuidance(period=5000, guided=10), 2, 1)
    given_costs = costs(made, {("block1", Kind.GRADIENT): 1000.0})
    assert works(made, given_costs)["block1"].seconds == pytest.approx(4.0)
    assert limit(made, given_costs).period == pytest.approx(4.0)


def test_operations_of_a_step() -> None:
    made = program(PeriodicGuidance(period=4, guided=1), 2, 3)
    assert period_of(made) == 4
    counts = operations_a_step(made)["block1"]
    assert counts == {Kind.FORWARD: 3, Kind.GRADIENT: 0.75, Kind.ASSESS: 2.25, Kind.UPDATE: 1}
    assert period_of(program(MomentumAuxiliary(every=6), 3, 1)) == 6
    assert period_of(program(PeriodicGuidance(period=5000), 2, 1)) == 5000
    assert period_of(program(Local(), 2, 1)) == 1


def test_delayed_gradients_wait_for_nothing() -> None:
    assert bound(DelayedGradients(), 4, block3_G=5.0) == (pytest.approx(7.0), "block3")


def test_pairwise_interlocking_waits_for_the_next_block_only() -> None:
    # Block 1: F1 F2 L2 G1 U1 = 7; block 2: F2 F3 L3, its own L2, and G2, U2.
    made = program(Interlocking(), 2, 1)
    assert limit(made, costs(made)).period == pytest.approx(7.0)


@settings(max_examples=60)
@given(st.sampled_from(RULES), st.integers(1, 4), st.integers(1, 3), st.data())
def test_between_the_busiest_actor_and_all_in_a_row(
    rule: Rule, blocks: int, shards: int, data: st.DataObject
) -> None:
    made = program(rule, blocks, shards)
    usual = costs(made)
    seconds = {which: data.draw(st.integers(0, 9)) / 4 for which in sorted(usual.operations)}
    given_costs = costs(made, seconds)
    work = [own.seconds for own in works(made, given_costs).values()]
    found = limit(made, given_costs)
    assert max(work) <= found.period * (1 + 1e-9)
    assert found.period <= sum(work) * (1 + 1e-9)
    if isinstance(rule, Local | DelayedGradients):
        # Nothing waits; only a chain that is still filling could take a little more.
        assert found.period == pytest.approx(max(work), rel=0.02, abs=1e-9)


@given(st.sampled_from(RULES), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=40)
def test_every_program_can_run(rule: Rule, blocks: int, shards: int) -> None:
    made = program(rule, blocks, shards)
    lists = programs(made, range(8))
    ran = [(name, op) for name, op, _ in in_order(made, lists, set())]
    assert len(ran) == len(set(ran)) == sum(map(len, lists.values()))
    for name, operations in lists.items():
        assert [op for who, op in ran if who == name] == operations


@pytest.mark.parametrize(
    ("rule", "shards"),
    [
        (Local(), [1, 1, 1]),
        (Backprop(order="gpipe"), [4, 4, 4]),
        (Backprop(order="1f1b"), [3, 2, 1]),
        # After the forward of shard s of step t come those of two (one) steps before.
        (DelayedGradients(), [9, 5, 1]),
    ],
)
def test_shards_between_forward_and_backward(rule: Rule, shards: list[int]) -> None:
    made = program(rule, 3, 4)
    work = works(made, costs(made, kept={"block1": 10, "block2": 10, "block3": 10}))
    assert [work[f"block{k}"].shards for k in (1, 2, 3)] == shards
    assert [work[f"block{k}"].activations for k in (1, 2, 3)] == [10 * n for n in shards]


def test_features_replay_keeps_inputs_only() -> None:
    made = program(DelayedGradients(stash="inputs"), 2, 1)
    sends = {("source", Kind.BATCH): (Sent("block1", "x", 7),)}
    work = works(made, costs(made, sends=sends, kept={"block1": 100}))
    assert (work["block1"].shards, work["block1"].activations) == (2, 107)


def test_bytes_of_a_step() -> None:
    made = program(BLL(), 3, 2)
    sends = {
        ("source", Kind.BATCH): (Sent("block1", "x", 1),),
        ("block1", Kind.FORWARD): (Sent("block2", "x", 10),),
        ("block1", Kind.ASSESS): (Sent("feedback1", "readout", 100),),
        ("feedback2", Kind.TABLE): (
            Sent("block2", "table", 1000),
            Sent("feedback1", "raw", 10000),
        ),
    }
    work = works(made, costs(made, sends=sends))
    # Two shards, but one table a step.
    assert work["source"].forward == 2
    assert (work["block1"].forward, work["block1"].beside) == (20, 200)
    assert (work["feedback2"].back, work["feedback2"].beside) == (10000, 1000)


def test_weights_count_once_in_a_while() -> None:
    made = program(MomentumAuxiliary(every=4), 2, 1)
    sends = {("block2", Kind.PUBLISH): (Sent("block1", "weights", 100),)}
    assert works(made, costs(made, sends=sends))["block2"].back == 25


def test_sentences_of_a_local_rule() -> None:
    made = program(Local(), 2, 1)
    plain = program(Backprop(), 2, 1)
    first, second = sentences(
        made,
        costs(made, {("block1", Kind.ASSESS): 6.0}, state={"block2": 3 << 30}),
        costs(plain, {("block1", Kind.GRADIENT): 2.0}),
    )
    # Block 1: 1 + 6 + 1 = 8 s, block 2: 4 s; under backprop block 1 takes 4 s.
    assert first == (
        "block 1 takes 8000 ms a step, 1.3 times the mean of the blocks: at most 0.125 steps/s "
        "with rule local, one device for each actor; 50% of its time goes beyond what its units "
        "take under backprop"
    )
    assert second == (
        "block 2 keeps the most, 3.0 GiB: 0 B for backward passes of 1 shard, 3.0 GiB of weights, "
        "gradients and optimizer state"
    )


def test_sentences_of_what_else_limits() -> None:
    made = program(Backprop(), 3, 1)
    assert sentences(made, costs(made))[0] == (
        "a step goes through block 1, block 2 and block 3 in a row, so that the busiest, block 1, "
        "works 40% of the time: at most 0.1 steps/s with rule backprop, one device for each actor"
    )
    many = program(Backprop(), 6, 1)
    assert "6 actors (block 1 to block 6) in a row" in sentences(many, costs(many))[0]
    made = program(BLL(), 2, 1)
    for name, kind, who in (
        ("source", Kind.BATCH, "the source"),
        ("feedback1", Kind.READOUT, "feedback module 1"),
    ):
        said = sentences(made, costs(made, {(name, kind): 20.0}))[0]
        assert said.startswith(f"{who} takes 2") and "longer than any block: at most 0.0" in said


def test_table_has_a_row_an_actor() -> None:
    made = program(BLL(), 3, 1)
    rows = table(made, costs(made))
    assert list(rows.columns[0].cells) == [
        *("source", "block1", "block2", "block3", "feedback1", "feedback2")
    ]
    assert list(rows.columns[1].cells)[1] == "4000 ms"


def test_memory_is_the_sum() -> None:
    assert Work(activations=3, state=4).memory == 7
