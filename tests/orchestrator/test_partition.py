"""The partition is optimal, complete and deterministic."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.errors import UserError
from orchestrator.partition import partition, refine

Cuts = dict[tuple[int, ...], list[float] | None]


def _all_sizes(n: int, blocks: int) -> list[list[int]]:
    """Every way to cut n units into non-empty runs."""
    return [
        [b - a for a, b in pairwise((0, *cuts, n))]
        for cuts in combinations(range(1, n), blocks - 1)
    ]


def _sums(costs: list[int], sizes: list[int]) -> list[int]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [sum(costs[s : s + size]) for s, size in zip(starts, sizes, strict=True)]


@st.composite
def _problems(draw: st.DrawFn) -> tuple[list[int], int]:
    costs = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8))
    return costs, draw(st.integers(1, len(costs)))


@settings(max_examples=150)
@given(_problems())
def test_equals_brute_force(problem: tuple[list[int], int]) -> None:
    costs, blocks = problem
    sizes = partition(costs, blocks)
    assert len(sizes) == blocks and sum(sizes) == len(costs) and min(sizes) >= 1

    def key(candidate: list[int]) -> tuple[int, int, int]:
        sums = _sums(costs, candidate)
        return max(sums), sum(s * s for s in sums), sum(s * s for s in candidate)

    assert key(sizes) == min(key(candidate) for candidate in _all_sizes(len(costs), blocks))


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=7), st.data())
def test_float_costs_reach_the_optimum(costs: list[float], data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, len(costs)))
    sizes = partition(costs, blocks)
    assert len(sizes) == blocks and sum(sizes) == len(costs) and min(sizes) >= 1
    best = min(max(_sums(costs, s)) for s in _all_sizes(len(costs), blocks))  # type: ignore[arg-type]
    assert max(_sums(costs, sizes)) == pytest.approx(best, rel=1e-9, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("costs", "blocks", "sizes"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([9, 1, 1, 1], 2, [1, 3]),
        ([1, 2, 3, 4, 5], 3, [3, 1, 1]),
        ([10, 1, 1, 1, 1], 3, [1, 2, 2]),  # the largest block is given: the others are evened out
        ([0, 0, 0, 0, 0, 0], 3, [2, 2, 2]),  # nothing to balance: even numbers of units
        ([1, 1, 1, 1, 1], 2, [2, 3]),  # a tie, broken the same way every time
        ([7], 1, [1]),
    ],
)
def test_by_hand(costs: list[int], blocks: int, sizes: list[int]) -> None:
    assert partition(costs, blocks) == sizes


def test_a_long_chain_is_cut_exactly() -> None:
    assert partition([0.1] * 160, 16) == [10] * 16


@pytest.mark.parametrize(
    ("costs", "blocks", "message"),
    [
        ([1] * 5, 9, "blocks.count = 9 is more than the 5 units of this network: use at most 5"),
        ([1], 2, "blocks.count = 2 is more than the 1 unit of this network: use at most 1"),
        ([1] * 5, 0, "blocks.count = 0 is less than 1: use at least 1 block"),
        ([1, float("nan")], 1, "the cost of unit 2 is nan: costs must be finite and not negative"),
        ([-1, 1], 1, "the cost of unit 1 is -1: costs must be finite and not negative"),
    ],
)
def test_refusals(costs: list[float], blocks: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        partition(costs, blocks)
    assert str(caught.value) == message


def _heads(costs: list[int], head: dict[int, int]):
    """Costs of blocks whose auxiliary network costs what the unit before the cut says."""

    def measure(sizes: tuple[int, ...]) -> list[int]:
        measure.asked.append(sizes)  # type: ignore[attr-defined]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [
            s + head.get(end, 0) * (end < len(costs))
            for s, end in zip(_sums(costs, list(sizes)), ends, strict=True)
        ]

    measure.asked = []  # type: ignore[attr-defined]
    return measure


def test_refining_moves_units_away_from_an_expensive_head() -> None:
    # Units alone say 2 + 2; a head after unit 2 costs 5, after unit 1 it costs 1.
    measure = _heads([1, 1, 1, 1], {1: 1, 2: 5, 3: 5})
    assert refine([2, 2], measure) == [1, 3]
    assert measure.asked == [(2, 2), (1, 3)]  # type: ignore[attr-defined]


def test_refining_asks_the_cheaper_neighbour_first() -> None:
    found: Cuts = {
        (2, 3, 2): [3.0, 9.0, 2.0],
        (2, 2, 3): [3.0, 6.0, 5.0],
        (3, 1, 3): [7.0, 3.0, 5.0],
    }
    asked = []

    def measure(sizes: tuple[int, ...]) -> list[float] | None:
        asked.append(sizes)
        return found.get(sizes)

    assert refine([2, 3, 2], measure) == [2, 2, 3]
    assert asked == [(2, 3, 2), (2, 2, 3), (3, 1, 3), (2, 1, 4)]


@settings(max_examples=100)
@given(_problems(), st.dictionaries(st.integers(1, 8), st.integers(0, 20)))
def test_refining_never_makes_the_slowest_block_slower(
    problem: tuple[list[int], int], head: dict[int, int]
) -> None:
    costs, blocks = problem
    first, measure = partition(costs, blocks), _heads(costs, head)
    best = refine(first, measure)
    asked = measure.asked  # type: ignore[attr-defined]
    assert len(asked) == len(set(asked)) and asked[0] == tuple(first)
    assert len(best) == blocks and sum(best) == len(costs) and min(best) >= 1
    assert max(measure(tuple(best))) <= max(measure(tuple(first)))


def test_what_cannot_be_measured_is_passed_over() -> None:
    assert refine([2, 2], lambda sizes: None) == [2, 2]
    found: Cuts = {(2, 2, 2): [1.0, 9.0, 1.0], (3, 1, 2): None, (2, 1, 3): [1.0, 5.0, 6.0]}
    assert refine([2, 2, 2], lambda sizes: found.get(sizes)) == [2, 1, 3]
    noise: Cuts = {(2, 2): [10.0, 9.0], (1, 3): [9.0, 9.9]}  # 1 % better is none
    assert refine([2, 2], noise.__getitem__) == [2, 2]
