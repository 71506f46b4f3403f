"""The tree of additions: its shape, and that lanes which share the shards add alike."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learning.policies.tree import (
    Gradients,
    GradientTree,
    Parts,
    from_message,
    repeated,
    shares,
    to_message,
)

CPU = torch.device("cpu")


def total_of(numbers: Sequence[float]) -> float:
    tree = GradientTree(len(numbers))
    for shard, number in enumerate(numbers):
        tree.add(shard, [torch.tensor(number, dtype=torch.float64)])
    (total,) = tree.total()
    assert total is not None
    return total.item()


def test_additions_are_made_in_a_fixed_tree():
    x = [1e16, 1.0, -1e16, 1.0, 3.0, 1e-3, 0.1]
    by_hand = {
        1: x[0],
        2: x[0] + x[1],
        3: (x[0] + x[1]) + x[2],
        4: (x[0] + x[1]) + (x[2] + x[3]),
        5: ((x[0] + x[1]) + (x[2] + x[3])) + x[4],
        6: ((x[0] + x[1]) + (x[2] + x[3])) + (x[4] + x[5]),
        7: ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + x[6]),
    }
    for n, expected in by_hand.items():
        assert total_of(x[:n]) == expected
    # The order shows in these numbers: one after the other ends elsewhere.
    assert (x[0] + x[1]) + (x[2] + x[3]) != ((x[0] + x[1]) + x[2]) + x[3]


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=16))
def test_powers_of_two_are_perfect_trees(numbers):
    numbers = numbers[: 1 << (len(numbers).bit_length() - 1)]
    level = numbers
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    assert total_of(numbers) == level[0]


def test_missing_gradients_count_as_zero_and_the_tree_ends_empty():
    tree, one, two = GradientTree(3), torch.ones(2), torch.full((2,), 2.0)
    for _ in range(2):
        for shard, gradients in enumerate(([one, None, None], [None, two, None], [one, two, None])):
            tree.add(shard, gradients)
        total = tree.total()
        assert torch.equal(total[0], two) and torch.equal(total[1], 2 * two) and total[2] is None
        assert tree.total() == []


def by_counting(terms: Sequence[Tensor]) -> Tensor:
    """The same sum by another way: a binary counter that carries, then from right to left."""
    stack: list[tuple[int, Tensor]] = []
    for term in terms:
        size, value = 1, term
        while stack and stack[-1][0] == size:
            value = stack.pop()[1] + value
            size *= 2
        stack.append((size, value))
    total = stack.pop()[1]
    while stack:
        total = stack.pop()[1] + total
    return total


def wild(shards: int, seed: int) -> list[Gradients]:
    """Gradients whose sum shows the order of additions, with some missing."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-20, 20, (shards, 2, 5), generator=generator)
    terms = torch.randn(shards, 2, 5, generator=generator) * scale
    there = torch.rand(shards, generator=generator) < 0.7
    return [[t[0], t[1] if here else None, None] for t, here in zip(terms, there, strict=True)]


def lane_parts(gradients: Sequence[Gradients], own: Sequence[int]) -> Parts:
    tree = GradientTree(len(gradients))
    for shard in own:
        tree.add(shard, gradients[shard])
    return tree.parts()


@settings(max_examples=300)
@given(st.data(), st.integers(1, 17), st.integers(1, 5), st.integers(0, 10**6))
def test_lanes_end_with_the_bits_of_one(data, shards: int, lanes: int, seed: int) -> None:
    """Whichever lane has which shard, and however parts travel."""
    gradients = wild(shards, seed)
    owners = data.draw(st.lists(st.integers(0, lanes - 1), min_size=shards, max_size=shards))
    parts = [
        lane_parts(gradients, [s for s in range(shards) if owners[s] == lane])
        for lane in range(lanes)
    ]
    messages = [to_message("g", part) for part in data.draw(st.permutations(parts))]
    tree = GradientTree(shards)
    got = tree.merge(from_message("g", message, 3, CPU) for message in messages)
    alone = by_counting([g for g, _, _ in gradients if g is not None])
    assert got[0] is not None and torch.equal(got[0], alone)
    whole = lane_parts(gradients, range(shards))[0, shards]
    for one, other in zip(got, whole, strict=True):
        assert other is None if one is None else torch.equal(one, other)
    assert tree.total() == []


def test_parts_are_the_largest_that_a_lane_has():
    gradients: list[Gradients] = [[torch.ones(1)]] * 7
    assert list(lane_parts(gradients, [0, 1, 2, 3])) == [(0, 4)]
    assert list(lane_parts(gradients, [4, 5, 6])) == [(4, 3)]
    assert list(lane_parts(gradients, [1, 2, 3, 4, 5])) == [(1, 1), (2, 2), (4, 2)]
    assert list(lane_parts(gradients, [0, 2, 3, 6])) == [(0, 1), (2, 2), (6, 1)]
    assert list(lane_parts(gradients, range(7))) == [(0, 7)]


def test_shards_that_are_missing_or_there_twice_are_caught():
    one: Gradients = [torch.ones(1)]
    tree = GradientTree(3)
    tree.add(0, one)
    with pytest.raises(AssertionError, match="not the step's 3 shards"):
        tree.total()
    with pytest.raises(AssertionError, match="not the step's 3 shards"):
        tree.merge([{(0, 2): one}])
    for parts in ([{(0, 2): one}, {(1, 1): one}], [{(0, 1): one}, {(0, 2): one}]):
        with pytest.raises(AssertionError, match="of 3 shards"):
            tree.merge(parts)
    tree.clear()
    with pytest.raises(AssertionError, match="of 3 shards"):
        tree.add(3, one)


@given(st.integers(1, 40), st.integers(1, 40))
def test_lanes_share_evenly_and_leave_no_shard_out(shards: int, lanes: int) -> None:
    lanes = min(shards, lanes)
    own = shares(shards, lanes)
    assert [s for share in own for s in share] == list(range(shards))
    assert {len(share) for share in own} <= {shards // lanes, -(-shards // lanes)}


@pytest.mark.parametrize("count", range(1, 18))
def test_equal_terms_add_up_as_in_the_tree(count: int):
    term = torch.randn(50, generator=torch.Generator().manual_seed(count))
    assert torch.equal(repeated(term, count), by_counting([term] * count))
