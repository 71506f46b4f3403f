"""Tables and pictures of a sweep, and which trial is the best."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from blocklocal.sweep_file import make_settings
from learning.errors import UserError
from tuning.outcome import best_of, check_has_best, write_best, write_page, write_table
from tuning.pictures import draw, importances
from tuning.records import Evaluation, Outcome
from tuning.space import Space, Values

METRIC = "validation/accuracy"
KEYS = ("optimizer.lr", "rule.kind", "rule.reach", "blocks.count")
SPACE = Space.read(
    {
        "optimizer.lr": {"loguniform": [0.001, 0.1]},
        "rule.kind": {"choice": ["local", "interlocking"]},
        "rule.reach": {"integer": [1, 3], "when": {"rule.kind": "interlocking"}},
        "blocks.count": {"integer": [1, 4]},
    },
    KEYS,
    (),
)


def outcome(
    number: int, value: float | None, status: str = "finished", steps: int = 80, **values: object
) -> Outcome:
    told = [] if value is None else [Evaluation(steps, {METRIC: value})]
    return Outcome(number, values, status, None, told, why="a sentence" * (status == "failed"))


def test_the_best_is_among_those_that_trained_to_the_end() -> None:
    trials = [
        outcome(0, 0.7),
        outcome(1, 0.9, "stopped", steps=40),
        outcome(2, 0.8),
        outcome(3, 0.0, "failed"),
        outcome(4, None, "lost"),
    ]
    best = best_of(trials, METRIC, "max")
    assert best is not None and best.number == 2
    best = best_of(trials, METRIC, "min")
    assert best is not None and best.number == 0
    best = best_of([trials[1], trials[3]], METRIC, "max")
    assert best is not None and best.number == 1
    with pytest.raises(UserError, match=r"no trial of the sweep could be trained \(a sentence"):
        check_has_best(best_of([trials[3]], METRIC, "max"), [trials[3]])


def test_a_trial_that_was_good_enough_to_end_the_sweep_is_the_best() -> None:
    trials = [outcome(0, 0.7), outcome(1, 0.9, "stopped", steps=40), outcome(2, 0.8, "stopped")]
    for enough, number in ((0.85, 1), (0.75, 1), (0.95, 0)):
        best = best_of(trials, METRIC, "max", enough)
        assert best is not None and best.number == number, enough
    best = best_of(trials, METRIC, "min", 0.75)
    assert best is not None and best.number == 0


def test_tables_have_every_trial(tmp_path: Path) -> None:
    trials = [
        outcome(1, 0.25, **{"optimizer.lr": 0.01, "rule.kind": "local"}),
        outcome(0, None, "failed"),
    ]
    write_table(tmp_path / "trials.csv", trials, KEYS, METRIC)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert (rows[1]["optimizer.lr"], rows[1][METRIC], rows[1]["rule.reach"]) == ("0.01", "0.25", "")
    assert (rows[0]["status"], rows[0]["why"]) == ("failed", "a sentence")
    write_page(tmp_path / "report.md", "x", trials, SPACE, make_settings({}), [])
    page = (tmp_path / "report.md").read_text()
    assert "2 trials: 1 finished, 1 failed." in page
    assert "| 0001 | 0.25 | 80 | finished | 0.01 | local |  |  |" in page
    assert "- trial 0000 failed: a sentence" in page


def test_the_best_configuration_says_which_trial_it_is(tmp_path: Path) -> None:
    write_best(tmp_path / "best.yaml", {"a": {"b": 1}}, outcome(7, 0.5, "stopped"), METRIC)
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# Trial 0007: validation/accuracy 0.5 after 80 steps.\n")
    assert "# It was stopped there" in text
    assert yaml.safe_load(text) == {"a": {"b": 1}}


def trials_where_only_the_rate_matters(count: int) -> list[Outcome]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        rate = float(10 ** random.uniform(-3, -1))
        values: Values = {"optimizer.lr": rate, "blocks.count": int(random.integers(1, 5))}
        values["rule.kind"] = str(random.choice(["local", "interlocking"]))
        if values["rule.kind"] == "interlocking":
            values["rule.reach"] = int(random.integers(1, 4))
        made.append(outcome(number, -abs(np.log10(rate) + 2), **values))
    return made


def test_what_matters_is_found() -> None:
    shares = importances(trials_where_only_the_rate_matters(40), SPACE, METRIC)
    assert next(iter(shares)) == "optimizer.lr" and shares["optimizer.lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_nothing_is_said_about_too_few_or_equal_trials(tmp_path: Path) -> None:
    few = trials_where_only_the_rate_matters(4)
    assert importances(few, SPACE, METRIC) == {}
    assert [p.name for p in draw(tmp_path, few, SPACE, METRIC, "max")] == [
        "curves.png",
        "parallel.png",
    ]
    alike = [outcome(n, 0.5, **{"optimizer.lr": 0.1}) for n in range(20)]
    assert importances(alike, SPACE, METRIC) == {}
    assert draw(tmp_path / "none", [outcome(0, None, "lost")], SPACE, METRIC, "max") == []


def test_pictures_are_drawn(tmp_path: Path) -> None:
    trials = trials_where_only_the_rate_matters(12)
    made = draw(tmp_path, trials, SPACE, METRIC, "max")
    assert len(made) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
