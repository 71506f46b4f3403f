"""The programs of the actors: their order by hand, and that together they always end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.operations import Kind, Operation
from learning.rules import BLL, Backprop, Local, Rule
from orchestrator.program import Calendar, block_program, feedback_program, source_program
from tests.learning.helpers import Hops
from tests.orchestrator.simulator import NOTHING, kinds, program


def order(rule: Rule, blocks: int, shards: int) -> list[str]:
    """One step of every block."""
    made = program(rule, blocks, shards)
    return [kinds(block_program(made, k, NOTHING, range(1))) for k in range(1, blocks + 1)]


ONE_F_ONE_B = {
    (1, 1): ["F0 L0 U"],
    (1, 3): ["F0 L0 F1 L1 F2 L2 U"],
    (2, 1): ["F0 G0 U", "F0 L0 U"],
    (2, 2): ["F0 F1 G0 G1 U", "F0 L0 F1 L1 U"],
    (2, 4): ["F0 F1 G0 F2 G1 F3 G2 G3 U", "F0 L0 F1 L1 F2 L2 F3 L3 U"],
    (3, 3): ["F0 F1 F2 G0 G1 G2 U", "F0 F1 G0 F2 G1 G2 U", "F0 L0 F1 L1 F2 L2 U"],
    (3, 4): [
        "F0 F1 F2 G0 F3 G1 G2 G3 U",
        "F0 F1 G0 F2 G1 F3 G2 G3 U",
        "F0 L0 F1 L1 F2 L2 F3 L3 U",
    ],
    (4, 2): ["F0 F1 G0 G1 U", "F0 F1 G0 G1 U", "F0 F1 G0 G1 U", "F0 L0 F1 L1 U"],
    (4, 4): [
        "F0 F1 F2 F3 G0 G1 G2 G3 U",
        "F0 F1 F2 G0 F3 G1 G2 G3 U",
        "F0 F1 G0 F2 G1 F3 G2 G3 U",
        "F0 L0 F1 L1 F2 L2 F3 L3 U",
    ],
}


@pytest.mark.parametrize(("size", "expected"), ONE_F_ONE_B.items(), ids=str)
def test_1f1b_by_hand(size: tuple[int, int], expected: list[str]) -> None:
    assert order(Backprop(order="1f1b"), *size) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    {
        (1, 2): ["F0 F1 L0 L1 U"],
        (2, 1): ["F0 G0 U", "F0 L0 U"],
        (3, 4): [
            "F0 F1 F2 F3 G0 G1 G2 G3 U",
            "F0 F1 F2 F3 G0 G1 G2 G3 U",
            "F0 F1 F2 F3 L0 L1 L2 L3 U",
        ],
    }.items(),
    ids=str,
)
def test_gpipe_by_hand(size: tuple[int, int], expected: list[str]) -> None:
    assert order(Backprop(order="gpipe"), *size) == expected


@pytest.mark.parametrize("rule", [Local(), BLL()], ids=["local", "bll"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_local_rules_assess_every_shard_at_once(rule: Rule, blocks: int) -> None:
    for shards in range(1, 5):
        step = " ".join(f"F{s} L{s}" for s in range(shards)) + " U"
        assert order(rule, blocks, shards) == [step] * blocks


def test_gradients_of_two_losses_by_hand() -> None:
    """Overlapping blocks: block k takes its own loss and that of block k+1."""
    assert order(Hops(weights={0: 1.0, 1: 1.0}), 3, 3) == [
        "F0 F1 L0 G0 F2 L1 G1 L2 G2 U",
        "F0 F1 L0 G0 F2 L1 G1 L2 G2 U",
        "F0 L0 F1 L1 F2 L2 U",
    ]


def test_origins_of_gradients() -> None:
    """Interlocking over two blocks: a gradient says whose loss it is of."""
    made = program(Hops(weights={2: 1.0}), 4, 1)
    reaching = {
        k: [(op.kind, op.origin) for op in block_program(made, k, NOTHING, range(1))[1:-1]]
        for k in range(1, 5)
    }
    assert reaching == {
        1: [(Kind.GRADIENT, 3)],
        2: [(Kind.GRADIENT, 3), (Kind.GRADIENT, 4)],
        3: [(Kind.ASSESS, 0), (Kind.GRADIENT, 4)],
        4: [(Kind.ASSESS, 0)],
    }


CALENDAR = Calendar(
    {1: ("validation",), 2: ("validation", "test")},
    frozenset({0, 2}),
    {"validation": 2, "test": 1},
)


def test_calendar_of_a_block() -> None:
    operations = block_program(program(Local(), 2, 1), 1, CALENDAR, range(4))
    assert kinds(operations) == "F0 L0 U S F0 L0 U E0 E1 T F0 L0 U E0 E1 T E0 T S F0 L0 U"
    last = [op for op in operations if op.kind in (Kind.EVALUATE, Kind.TALLY) and op.step == 2]
    assert [op.split for op in last] == ["validation"] * 3 + ["test"] * 2


def test_calendar_of_the_source_and_of_a_feedback_module() -> None:
    made = program(BLL(), 2, 2)
    assert kinds(source_program(made, CALENDAR, range(3))) == "X0 X1 X0 X1 E0 E1 X0 X1 E0 E1 E0"
    assert kinds(feedback_program(made, CALENDAR, range(3))) == "B R0 R1 V S B R0 R1 V B R0 R1 V S"


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=50)
def test_chunks_put_together_are_the_whole_program(blocks: int, shards: int, cuts: list) -> None:
    made = program(BLL(), blocks, shards)
    edges = sorted({0, 9, *cuts})
    for make in (
        lambda steps: source_program(made, CALENDAR, steps),
        lambda steps: block_program(made, 1, CALENDAR, steps),
        lambda steps: feedback_program(made, CALENDAR, steps),
    ):
        parts: list[Operation] = []
        for start, stop in pairwise(edges):
            parts += make(range(start, stop))
        assert parts == make(range(edges[-1]))
