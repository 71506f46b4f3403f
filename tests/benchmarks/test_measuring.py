"""How benchmarks measure: turns, ratios within a repeat, where a step goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.operations import Span
from benchmarks import measuring, ours, throughput
from benchmarks.throughput import Lengths
from tests.benchmarks.helpers import repeat


@given(n=st.integers(1, 8), repeats=st.integers(1, 8))
def test_every_order_has_all_contenders_and_they_take_turns(n: int, repeats: int) -> None:
    names = [str(i) for i in range(n)]
    orders = [measuring.rotated(names, i, repeats) for i in range(repeats)]
    assert all(sorted(order) == names for order in orders)
    starts = [order[0] for order in orders]
    assert max(starts.count(s) for s in starts) <= -(-repeats // n)


def test_ratios_are_within_a_repeat() -> None:
    """A machine that is four times slower in one repeat changes rates, not ratios."""
    repeats = [repeat(a=2.0, b=1.0), repeat(a=0.5, b=0.25), repeat(a=6.0, b=2.0)]
    assert measuring.ratios(repeats, "a", "b") == [2.0, 2.0, 3.0]
    assert measuring.spread(measuring.ratios(repeats, "a", "b")) == "2.00 (2.00 to 3.00)"
    assert measuring.noise([1.0, 2.0, 3.0]) == 0.5


def test_the_best_has_the_highest_median_not_the_highest_value() -> None:
    repeats = [repeat(a=2.0, b=9.0), repeat(a=2.0, b=1.0), repeat(a=2.0, b=1.0)]
    assert measuring.best(repeats, ["a", "b"]) == "a"


def test_interleaving_calls_every_contender_once_a_repeat() -> None:
    called: list[str] = []

    def contender(name: str) -> measuring.Sample:
        called.append(name)
        return {"rate": float(len(called)), "details": {}}

    contenders = {name: (lambda name=name: contender(name)) for name in "ab"}
    lines: list[str] = []
    repeats = measuring.interleaved(contenders, 2, lines.append)
    assert called == ["a", "b", "b", "a"]
    assert measuring.rates(repeats, "a") == [1.0, 4.0]
    assert len(lines) == 2 and all(r["load_average"] >= 0 for r in repeats)


@given(step=st.floats(1e-4, 1.0), slower=st.floats(0.5, 4.0))
def test_contenders_run_about_equally_long(step: float, slower: float) -> None:
    warmup, steps = Lengths(2.0, step).of(slower)
    assert warmup >= throughput.LEAST_WARMUP and steps >= throughput.LEAST_STEPS
    assert steps == throughput.LEAST_STEPS or abs(steps * step * slower - 2.0) <= step * slower


def test_where_a_step_goes_adds_up() -> None:
    spans = [
        Span("F", 0, 0, 0, 9, 0, 0),  # warm-up
        Span("F", 1, 0, 10_000_000, 14_000_000, 1_000_000, 500_000),
        Span("U", 1, 0, 15_000_000, 18_000_000, 0, 0),
    ]
    assert ours._parts(spans, 1, 1) == {
        "step_ms": 8.0,
        "work_ms": 5.5,
        "waiting_ms": 1.0,
        "blocked_ms": 0.5,
        "between_ms": 1.0,
    }
