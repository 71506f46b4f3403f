"""After which steps a schedule evaluates and keeps checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from learning.data import AugmentSettings, Batches, arrays_dataset
from orchestrator.schedule import Schedule


def batches(validation: float) -> Batches:
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    data = arrays_dataset(x, y, x[:30], y[:30], validation=validation)
    return Batches(data, seed=0, batch=4, augment=AugmentSettings())


def test_calendar_validates_every_so_often_and_tests_at_the_end_only() -> None:
    calendar = Schedule(steps=9, evaluate_every=3).calendar(batches(0.25), 8)
    assert calendar.evaluations == {
        2: ("validation",),
        5: ("validation",),
        8: ("validation", "test"),
    }
    assert calendar.snapshots == {2, 5, 8}
    assert calendar.evaluation_batches == {"validation": 2, "test": 4}


@pytest.mark.parametrize(
    ("steps", "every", "after"),
    [(10, 3, [2, 5, 8, 9]), (1, 1, [0]), (1, 100, [0]), (4, 1, [0, 1, 2, 3]), (5, 5, [4])],
)
def test_last_step_is_always_evaluated_and_saved(steps: int, every: int, after: list[int]) -> None:
    calendar = Schedule(steps, every).calendar(batches(0.25), 8)
    assert sorted(calendar.evaluations) == sorted(calendar.snapshots) == after
    tested = [step for step, splits in calendar.evaluations.items() if "test" in splits]
    assert tested == [steps - 1]


def test_checkpoints_between_evaluations() -> None:
    calendar = Schedule(10, 4, checkpoint_every=3).calendar(batches(0.25), 8)
    assert sorted(calendar.evaluations) == [3, 7, 9]
    assert sorted(calendar.snapshots) == [2, 3, 5, 7, 8, 9]


def test_empty_validation_split_is_not_evaluated() -> None:
    calendar = Schedule(4, 2).calendar(batches(0.0), 8)
    assert calendar.evaluations == {1: (), 3: ("test",)}
    assert calendar.snapshots == {1, 3}
