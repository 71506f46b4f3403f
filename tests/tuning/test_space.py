"""The space of a sweep: what is written, what is refused, and which points it has."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.errors import UserError
from learning.yaml_text import parse_yaml
from tuning.dimensions import Dimension, read_dimension
from tuning.space import Space

KNOWN = ("optimizer", "optimizer.lr", "optimizer.kind", "rule", "rule.kind", "rule.reach")
KNOWN += ("rule.feedback", "rule.feedback.kind", "blocks", "blocks.count", "run", "run.name")
CLOSED = ("run.",)


def space(**written: Any) -> Space:
    """A space of keys with `__` for dots."""
    tree = {key.replace("__", "."): value for key, value in written.items()}
    return Space.read(tree, KNOWN, CLOSED)


RULES = {"choice": ["local", "bll", "interlocking"]}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, "the sweep has no space: write space: "),
        ({"optimizer.lrr": RULES}, "unknown setting optimizer.lrr in space: did you mean "),
        ({"optimizer": RULES}, "optimizer, which is a section: vary optimizer.<key>"),
        ({"run.name": RULES}, "space varies run.name, which belongs to the sweep as a whole"),
        ({"optimizer.lr": 3}, "space.optimizer.lr = 3 says no values: write optimizer.lr: {"),
        ({"optimizer.lr": {"unifrom": [0, 1]}}, "word 'unifrom': did you mean uniform?"),
        ({"optimizer.lr": {"uniform": [0, 1], "choice": [1]}}, "has 2 kinds of values"),
        ({"optimizer.lr": {"uniform": [0.1, 0.01]}}, "its min 0.1 above its max 0.01: swap them"),
        ({"optimizer.lr": {"uniform": [0, float("inf")]}}, "the end inf: use a finite number"),
        ({"optimizer.lr": {"uniform": [0, True]}}, "the end True: use a finite number"),
        ({"optimizer.lr": {"uniform": [0]}}, "uniform = [0] is no range: write [min, max]"),
        ({"optimizer.lr": {"loguniform": [0, 1]}}, "loguniform begins at 0: begin above 0"),
        ({"optimizer.lr": {"quniform": [0, 1, 0]}}, "the step 0 of quniform does not divide"),
        ({"optimizer.lr": {"quniform": [0, 1, 5]}}, "the step 5 of quniform does not divide"),
        ({"blocks.count": {"integer": [1, 2.5]}}, "has a fraction: use whole numbers"),
        ({"rule.kind": {"choice": []}}, "choice = [] is no list of values"),
        ({"rule.kind": {"choice": "local"}}, "choice = 'local' is no list of values"),
        ({"rule.kind": {"choice": [1, 2, 1]}}, "choice names 1 twice: leave one out"),
        ({"rule.kind": {**RULES, "when": {"rule.kind": 1}}}, "names rule.kind, itself"),
        ({"rule.kind": {**RULES, "when": 3}}, "when = 3 is no condition"),
        (
            {"rule.kind": RULES, "rule.reach": {"integer": [1, 2], "when": {"rule.knd": "x"}}},
            "when names rule.knd, which space does not vary: did you mean rule.kind?",
        ),
        (
            {"rule.kind": RULES, "rule.reach": {"integer": [1, 2], "when": {"rule.kind": "bl"}}},
            "when names rule.kind = 'bl', which it never is: did you mean bll?",
        ),
        (
            {
                "optimizer.lr": {"uniform": [0, 1]},
                "rule.reach": {"integer": [1, 2], "when": {"optimizer.lr": 1}},
            },
            "when names optimizer.lr, a uniform: only choices and whole numbers decide",
        ),
        (
            {
                "rule.kind": {**RULES, "when": {"blocks.count": 1}},
                "blocks.count": {"integer": [1, 2], "when": {"rule.kind": "bll"}},
            },
            "rule.kind and blocks.count depend on each other: drop one `when`",
        ),
        (
            {"rule.kind": RULES, "rule.reach": {"grid": [1, 2], "when": {"rule.kind": "bll"}}},
            "a grid has no `when`: use choice",
        ),
        (
            {"optimizer.lr": {"uniform": [0, 1]}, "optimizer.lr[2]": {"uniform": [0, 1]}},
            "space varies optimizer.lr as a whole and its entry optimizer.lr[2]",
        ),
        ({"optimizer.lr[0]": {"uniform": [0, 1]}}, "space has the key 'optimizer.lr[0]'"),
    ],
)
def test_mistakes_are_one_sentence(written: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        Space.read(written, KNOWN, CLOSED)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_exponents_without_a_point_are_numbers() -> None:
    """As in YAML 1.2; what is in quotes is text."""
    dimension = read_dimension("optimizer.lr", parse_yaml("{loguniform: [1e-4, 1E-1]}"))
    assert (dimension.low, dimension.high) == (1e-4, 0.1)
    with pytest.raises(UserError, match="has the end '1e-4': use a finite number"):
        read_dimension("optimizer.lr", parse_yaml("{loguniform: ['1e-4', 1e-1]}"))


@pytest.mark.parametrize(
    "written",
    [
        {"uniform": [0, 1e308]},
        {"uniform": [0, 10**400]},
        {"integer": [0, 1e300]},
        {"quniform": [0, 1, 1e-300]},
        {"quniform": [0, 1e18, 5e-324]},
        {"choice": "x" * 90_000},
        {"choice": [["x" * 90_000] * 9] * 2},
        {"when": {"a": "x" * 90_000}, "choice": [1]},
        "x" * 90_000,
        {"x" * 90_000: 1},
    ],
)
def test_ranges_and_texts_without_an_end(written: object) -> None:
    with pytest.raises(UserError) as raised:
        Space.read({"optimizer.lr": written}, KNOWN, CLOSED)
    assert len(str(raised.value)) < 500


def test_grids_that_nobody_waits_for() -> None:
    """They are counted before they are listed: that alone would take hours."""
    hundred = {"grid": list(range(1, 101))}
    space = Space([read_dimension(f"k{i}", hundred) for i in range(12)])
    with pytest.raises(UserError, match="is below the 1000000000000000000000000 points of the"):
        space.samples(1_000, seed=0)
    with pytest.raises(UserError, match="the grid has more than 10000 points"):
        space.grid()


@given(st.integers(0, 10_000), st.floats(1e-6, 1.0), st.floats(1.0, 1e6))
def test_values_are_within_their_ranges(seed: int, low: float, high: float) -> None:
    generator = random.Random(seed)
    for kind in ("uniform", "loguniform"):
        value = Dimension("x", kind, low=low, high=high).sample(generator)  # pyright: ignore
        assert low <= value <= high
    assert Dimension("x", "integer", low=3, high=5).sample(generator) in (3, 4, 5)
    quantised = Dimension("x", "quniform", low=0.0, high=0.3, step=0.1)
    assert quantised.sample(generator) in (0.0, 0.1, 0.2, 0.3)


def test_values_without_number_are_drawn_and_never_listed() -> None:
    """A billion of them would fill the memory."""
    for kind, low, high, step in (("integer", 1, 10**9, 0.0), ("quniform", 0.0, 1.0, 1e-9)):
        dimension = Dimension("x", kind, low=low, high=high, step=step)  # pyright: ignore
        value = dimension.sample(random.Random(1))
        assert dimension.has(value) and not dimension.has(high + 1)
        with pytest.raises(UserError, match="values, and more than 10000 are not listed"):
            dimension.listed()
    assert not Dimension("x", "integer", low=1, high=3).has(1.5)


def test_both_ends_of_whole_numbers_come_up() -> None:
    dimension = Dimension("x", "integer", low=1, high=3)
    generator = random.Random(0)
    assert {dimension.sample(generator) for _ in range(100)} == {1, 2, 3}
    assert all(isinstance(v, int) for v in dimension.listed())


def test_a_setting_is_there_only_under_its_condition() -> None:
    found = space(
        rule__feedback__kind={"choice": ["chain", "direct"], "when": {"rule.kind": ["bll"]}},
        rule__kind=RULES,
    )
    assert found.keys == ["rule.kind", "rule.feedback.kind"]  # after what it depends on
    points = found.samples(200, seed=1)
    for point in points:
        assert ("rule.feedback.kind" in point) == (point["rule.kind"] == "bll")
    assert points == found.samples(200, seed=1) != found.samples(200, seed=2)


def test_a_condition_on_what_is_not_there_does_not_hold() -> None:
    found = space(
        rule__kind=RULES,
        rule__feedback__kind={"choice": ["chain", "direct"], "when": {"rule.kind": "bll"}},
        rule__reach={"integer": [1, 2], "when": {"rule.feedback.kind": "chain"}},
    )
    assert all("rule.reach" not in p for p in found.samples(50, 0) if p["rule.kind"] != "bll")


def test_a_grid_has_every_point_once() -> None:
    found = space(
        rule__kind=RULES,
        rule__feedback__kind={"choice": ["chain", "direct"], "when": {"rule.kind": "bll"}},
        blocks__count={"integer": [1, 2]},
    )
    points = found.grid()
    assert len(points) == 2 * (2 + 2)  # two feedbacks of bll, one of each other rule
    assert all(points.count(point) == 1 for point in points)
    with pytest.raises(UserError, match=r"cannot list optimizer.lr: uniform has no end"):
        space(optimizer__lr={"uniform": [0, 1]}).grid()


def test_grids_among_chances_come_up_equally_often() -> None:
    found = space(rule__kind={"grid": ["local", "bll"]}, optimizer__lr={"uniform": [0, 1]})
    kinds = [point["rule.kind"] for point in found.samples(10, 0)]
    assert kinds.count("local") == kinds.count("bll") == 5
    with pytest.raises(UserError, match="trials = 1 is below the 2 points of the grid"):
        found.samples(1, 0)


def test_corners_cover_every_choice_and_the_ends_of_each_range() -> None:
    found = space(
        rule__kind=RULES,
        rule__reach={"integer": [2, 9], "when": {"rule.kind": "interlocking"}},
        optimizer__lr={"loguniform": [0.001, 0.1]},
        blocks__count={"integer": [1, 3]},
    )
    corners = list(found.corners(["blocks.count"]))
    pairs = {(c["rule.kind"], c["blocks.count"]) for c in corners}
    assert len(pairs) == 9
    assert {c["optimizer.lr"] for c in corners} == {0.001, 0.1}
    assert {c.get("rule.reach") for c in corners} == {None, 2, 9}
    assert all(corners.count(c) == 1 for c in corners)


def test_entries_of_lists_count_from_one() -> None:
    (dimension,) = space(**{"optimizer__lr[2]": {"uniform": [0, 1]}})
    assert (dimension.path, dimension.index) == ("optimizer.lr", 2)
    assert read_dimension("optimizer.lr", {"uniform": [0, 1]}).index is None
