"""Endurance: slopes by hand, and a page that says flat or not."""

from __future__ import annotations

import pytest

from benchmarks import endurance, records


def test_slope_of_a_line_and_its_error() -> None:
    line = endurance.slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert line == (2.0, 0.0)
    bent = endurance.slope([0.0, 1.0, 2.0], [0.0, 3.0, 0.0])
    assert bent.bytes == 0.0 and bent.error == pytest.approx((6 / 1 / 2) ** 0.5)
    with pytest.raises(ValueError, match="take three"):
        endurance.slope([0.0, 1.0], [0.0, 1.0])


def sample(step: int, **values: float) -> dict[str, float]:
    return {"step": step, **values}


def test_the_warm_up_has_no_part_in_slopes() -> None:
    samples = [
        sample(s, driver=0.0 if s <= 250 else 3.0 * s, store=9.0) for s in range(50, 1001, 50)
    ]
    found = endurance.slopes(samples, 1000)
    assert list(found) == ["driver", "store"]  # what was not watched all the time is left out
    assert found["driver"].bytes == pytest.approx(3.0) and found["store"] == (0.0, 0.0)


@pytest.mark.parametrize(("grows", "word"), [(0.0, "yes"), (300.0, "no")])
def test_the_page_of_endurance_says_flat_or_not(grows: float, word: str) -> None:
    samples = [sample(s, driver=1e8 + grows * s, store=0.0) for s in range(500, 20_001, 500)]
    found = endurance.slopes(samples, 20_000)
    record = {
        "environment": records.environment(),
        "transport": "object_store",
        "steps": 20_000,
        "every": 100,
        "kill_every": 2_000,
        "samples": samples,
        "slopes": {name: line._asdict() for name, line in found.items()},
        "kills": [],
        "incidents": [],
    }
    text = endurance.page(record)
    (row,) = (line for line in text.splitlines() if line.startswith("| driver, resident | "))
    assert row.endswith(f"| {word} |") and f"| {grows:.0f} ± 0 |" in row
    assert "| 20,000 | " in text
