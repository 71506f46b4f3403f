"""When a block counts as slow."""

from __future__ import annotations

import pytest

from actors.operations import Span
from orchestrator.plan import BlockPlan, Plan
from orchestrator.rebalancing import Rebalancer, Slow


def plan(*shares: float | None) -> Plan:
    return Plan(
        blocks=tuple(
            BlockPlan(
                index=i,
                units=(f"unit{i}",),
                parameters=1,
                input_shape=(4,),
                output_shape=(4,),
                boundary_bytes=16,
                activation_bytes=16,
                time_share=share,
            )
            for i, share in enumerate(shares, start=1)
        )
    )


def spans(steps: int, work: int, waited: int = 0, blocked: int = 0) -> list[Span]:
    """One operation a step, in units of a millisecond."""
    unit, total = 10**6, work + waited + blocked
    return [
        Span("F", s, 0, s * 100 * unit, (s * 100 + total) * unit, waited * unit, blocked * unit)
        for s in range(steps)
    ]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.rebalancing.LEAST_SECONDS", 0.0)


def test_the_slowest_block_is_slow_when_it_takes_more_than_its_share() -> None:
    watch = Rebalancer(plan(0.25, 0.25, 0.5), drift=0.5)
    for block, work in ((1, 10), (2, 30), (3, 20)):
        watch.note(block, spans(20, work))
    slow = watch.slow()  # half of the time in place of a quarter
    assert slow is not None and slow.block == 2 and slow.drift == pytest.approx(1.0)
    assert watch.slow() is None  # nothing measured since


def test_waiting_is_not_work() -> None:
    watch = Rebalancer(plan(0.5, 0.5), drift=0.1)
    watch.note(1, spans(20, 10, waited=50, blocked=20))
    watch.note(2, spans(20, 10))
    assert watch.slow() is None


@pytest.mark.parametrize(("work", "found"), [(14, None), (16, Slow(2, 16 / 26 / 0.5 - 1))])
def test_a_drift_within_bounds_is_none(work: int, found: Slow | None) -> None:
    watch = Rebalancer(plan(0.5, 0.5), drift=0.2)
    watch.note(1, spans(20, 10))
    watch.note(2, spans(20, work))
    slow = watch.slow()
    assert (slow and slow.block) == (found and found.block)
    assert found is None or (slow and slow.drift) == pytest.approx(found.drift)


def test_too_few_steps_or_a_plan_without_times_say_nothing() -> None:
    for shares, steps in (((0.5, 0.5), 19), ((None, None), 20)):
        watch = Rebalancer(plan(*shares), drift=0.2)
        watch.note(1, spans(steps, 10))
        watch.note(2, spans(steps, 100))
        assert watch.slow() is None


def test_a_block_is_moved_for_its_slowness_once() -> None:
    watch = Rebalancer(plan(0.5, 0.5), drift=0.2)
    found: list[Slow | None] = []
    for _ in range(2):
        watch.note(1, spans(20, 10))
        watch.note(2, spans(20, 100))
        found.append(watch.slow())
        watch.moved([2])
    assert found[0] is not None and found[1] is None
