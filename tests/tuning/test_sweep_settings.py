"""The section `sweep`: metrics by name, modes, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from blocklocal.sweep_file import make_settings
from learning.errors import UserError
from tuning.schedulers import check_scheduler
from tuning.searchers import known_points
from tuning.settings import check_metric
from tuning.space import Space

KNOWN = ("optimizer.lr", "optimizer.kind", "training.batch", "blocks.count")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("validation/acuracy", "'validation/acuracy' does not exist: did you mean validation/acc"),
        ("accuracy", "does not exist: did you mean validation/accuracy?"),
        ("test/accuracy", "of the test rows, which no choice may depend on: use validation/acc"),
        ("validation/block3/loss", "of block 3, and a trial may have 2 blocks: use validation/"),
        ("zzz", "does not exist: use one of validation/accuracy, validation/loss, "),
    ],
)
def test_metrics_that_do_not_exist(metric: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        check_metric(metric, blocks=2)
    assert said in str(raised.value)


def test_metrics_that_exist_and_what_is_better() -> None:
    for metric, mode in (("validation/accuracy", "max"), ("validation/block2/loss", "min")):
        check_metric(metric, blocks=2)
        assert make_settings({"metric": metric}).better == mode


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"metrik": "x"}, "unknown setting sweep.metrik: did you mean sweep.metric?"),
        ({"mode": "maximum"}, "sweep.mode = 'maximum' is not possible: input should be 'min' or"),
        ({"mode": "min"}, "sweep.mode = min looks for the worst validation/accuracy: use max"),
        ({"trials": 0}, "sweep.trials = 0 is not possible"),
        ({"scheduler": "ash"}, "sweep.scheduler.kind = 'ash' is unknown: use one of"),
        ({"scheduler": {"kind": "asha", "reduction": 1}}, "sweep.scheduler.reduction = 1 is not"),
        ({"scheduler": {"kind": "pbt"}}, "sweep.scheduler.mutate is missing"),
        ({"scheduler": {"kind": "median", "reduction": 2}}, "has no setting reduction"),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["a"]}, "searcher": "optuna"},
            "sweep.scheduler.kind = pbt changes values itself",
        ),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["a"], "factors": [1.1, 1.2]}},
            "do not go down and up",
        ),
        (3, "sweep = 3 is no section"),
    ],
)
def test_mistakes_are_one_sentence(tree: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        make_settings(tree)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def space(**written: Any) -> Space:
    return Space.read({k.replace("__", "."): v for k, v in written.items()}, KNOWN, ())


LR = {"loguniform": [0.001, 0.1]}


@pytest.mark.parametrize(
    ("tree", "written", "said"),
    [
        ({"scheduler": {"kind": "asha", "grace": 300}}, {}, "grace = 300 is above the 200 steps"),
        ({"scheduler": {"kind": "asha", "longest": 10}}, {}, "evaluate_every = 40 is above the 10"),
        (
            {"scheduler": {"kind": "asha", "grace": 90, "longest": 80}},
            {},
            "grace = 90 is above longest = 80: swap them",
        ),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["optimizer.lr"], "every": 300}},
            {},
            "sweep.scheduler.every = 300 is above the 200 steps of a run: lower it",
        ),
        (
            {"scheduler": "asha"},
            {"training__batch": {"choice": [32, 64]}},
            "space varies training.batch, and with it how long a trial is",
        ),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["optimizer.wd"]}},
            {},
            "mutate names optimizer.wd, which space does not vary: name one of optimizer.lr",
        ),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["optimizer.lr"]}},
            {"blocks__count": {"integer": [1, 2]}},
            "space varies blocks.count, and sweep.scheduler.kind = pbt moves states between trials",
        ),
        (
            {"scheduler": {"kind": "pbt", "mutate": ["optimizer.kind"]}},
            {"optimizer__kind": {"choice": ["sgd", "adamw"]}},
            "mutate names optimizer.kind, and what is learnt so far fits only numbers",
        ),
    ],
)
def test_schedulers_that_cannot_work(tree: Any, written: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        check_scheduler(make_settings(tree), space(optimizer__lr=LR, **written), 200, 40)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("tree", "written", "said"),
    [
        ({}, {}, "sweep.trials is missing, and only a grid has a number of its own"),
        ({"searcher": "grid"}, {}, "searcher.kind = grid cannot list optimizer.lr"),
        (
            {"searcher": "bayesopt", "trials": 3},
            {},
            "space.optimizer.lr is a loguniform, and searcher.kind = bayesopt knows uniform",
        ),
        (
            {"searcher": "optuna", "trials": 3},
            {"blocks__count": {"grid": [1, 2]}},
            "space.blocks.count is a grid, and searcher.kind = optuna chooses points itself",
        ),
    ],
)
def test_searchers_that_cannot_search(tree: Any, written: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        known_points(make_settings(tree), space(optimizer__lr=LR, **written))
    assert said in str(raised.value)


def test_a_grid_alone_has_as_many_trials_as_points() -> None:
    found = space(blocks__count={"grid": [1, 2]}, optimizer__kind={"grid": ["sgd", "adamw"]})
    assert len(known_points(make_settings({}), found)) == 4
    with pytest.raises(UserError, match="trials = 3 and the grid has 4 points"):
        known_points(make_settings({"searcher": "grid", "trials": 3}), found)
