"""Credit tables worked out by hand: who learns from which loss, and what crosses boundaries."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.credit import END_TO_END, LOCAL, Hop

PAIRWISE, THREE_WISE, OVERLAPPING = Hop({1: 1.0}), Hop({2: 1.0}), Hop({0: 1.0, 1: 1.0})

# One row a block: sources, passed back, reaching, assessed.
TABLES = {
    "local 1": (LOCAL, [({1: 1}, (), (1,), True)]),
    "local 2": (LOCAL, [({1: 1}, (), (1,), True), ({2: 1}, (), (2,), True)]),
    "local 5": (LOCAL, [({k: 1}, (), (k,), True) for k in range(1, 6)]),
    "pairwise 1": (PAIRWISE, [({1: 1}, (), (1,), True)]),
    "pairwise 2": (PAIRWISE, [({2: 1}, (), (2,), False), ({2: 1}, (2,), (2,), True)]),
    "pairwise 3": (
        PAIRWISE,
        [
            ({2: 1}, (), (2,), False),
            ({3: 1}, (2,), (2, 3), True),
            ({3: 1}, (3,), (3,), True),
        ],
    ),
    "pairwise 4": (
        PAIRWISE,
        [
            ({2: 1}, (), (2,), False),
            ({3: 1}, (2,), (2, 3), True),
            ({4: 1}, (3,), (3, 4), True),
            ({4: 1}, (4,), (4,), True),
        ],
    ),
    "3-wise 2": (THREE_WISE, [({2: 1}, (), (2,), False), ({2: 1}, (2,), (2,), True)]),
    "3-wise 5": (
        THREE_WISE,
        [
            ({3: 1}, (), (3,), False),
            ({4: 1}, (3,), (3, 4), False),
            ({5: 1}, (3, 4), (3, 4, 5), True),
            ({5: 1}, (4, 5), (4, 5), True),
            ({5: 1}, (5,), (5,), True),
        ],
    ),
    "end to end 1": (END_TO_END, [({1: 1}, (), (1,), True)]),
    "end to end 4": (
        END_TO_END,
        [
            ({4: 1}, (), (4,), False),
            ({4: 1}, (4,), (4,), False),
            ({4: 1}, (4,), (4,), False),
            ({4: 1}, (4,), (4,), True),
        ],
    ),
    # The network ends after block K, whose own loss counts once, with the nearest weight.
    "overlapping 1": (OVERLAPPING, [({1: 1}, (), (1,), True)]),
    "overlapping 3": (
        OVERLAPPING,
        [
            ({1: 1, 2: 1}, (), (1, 2), True),
            ({2: 1, 3: 1}, (2,), (2, 3), True),
            ({3: 1}, (3,), (3,), True),
        ],
    ),
    "local and end to end 3": (
        Hop({0: 0.25, math.inf: 0.75}),
        [
            ({1: 0.25, 3: 0.75}, (), (1, 3), True),
            ({2: 0.25, 3: 0.75}, (3,), (2, 3), True),
            ({3: 0.25}, (3,), (3,), True),
        ],
    ),
}

hops = st.dictionaries(
    st.one_of(st.integers(0, 6), st.just(math.inf)), st.sampled_from([0.0, 0.5, 1.0]), min_size=1
).map(Hop)


@pytest.mark.parametrize("name", TABLES)
def test_tables_by_hand(name):
    hop, rows = TABLES[name]
    last = len(rows)
    for k, (sources, passed_back, reaching, assessed) in enumerate(rows, start=1):
        assert hop.sources(k, last) == sources
        assert hop.passed_back(k, last) == passed_back
        assert hop.reaching(k, last) == reaching
        assert hop.assessed(k, last) is assessed


def test_a_weight_of_zero_asks_for_nothing():
    hop = Hop({0: 1.0, 1: 0.0})
    for k in (1, 2, 3):
        assert hop.sources(k, 3) == LOCAL.sources(k, 3)
        assert hop.passed_back(k, 3) == ()


@given(last=st.integers(1, 8), extra=st.integers(0, 4))
def test_as_many_hops_as_blocks_is_end_to_end(last, extra):
    hop = Hop({last + extra - 1: 1.0})
    for k in range(1, last + 1):
        for table in ("sources", "passed_back", "reaching", "assessed"):
            assert getattr(hop, table)(k, last) == getattr(END_TO_END, table)(k, last)


@given(last=st.integers(2, 8), short=st.integers(1, 7))
def test_fewer_hops_than_blocks_are_not_end_to_end(last, short):
    n = min(short, last - 1)
    assert Hop({n - 1: 1.0}).sources(1, last) != END_TO_END.sources(1, last)


@given(hop=hops, last=st.integers(1, 7))
def test_what_a_block_passes_back_is_what_the_block_below_expects(hop, last):
    assert hop.passed_back(1, last) == ()
    for k in range(2, last + 1):
        arriving = tuple(j for j in hop.reaching(k - 1, last) if j != k - 1)
        assert hop.passed_back(k, last) == arriving
    for k in range(1, last + 1):
        # A loss is formed exactly when somebody expects its gradient first.
        assert hop.assessed(k, last) == (k in hop.reaching(k, last))
        assert set(hop.sources(k, last)) <= set(hop.reaching(k, last))
        assert all(hop.assessed(j, last) for j in hop.reaching(k, last))
