"""Searchers of Ray under a sweep: numbered trials, conditions, and a state that survives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from blocklocal.sweep_file import make_settings
from tuning.searchers import known_points, make_search
from tuning.space import Space

METRIC = "validation/accuracy"
KEYS = ("optimizer.lr", "rule.kind", "rule.reach", "blocks.at", "training.batch")
BAYESOPT = pytest.mark.skipif(
    importlib.util.find_spec("bayes_opt") is None, reason="bayesian-optimization is not installed"
)
WIDE = {
    "optimizer.lr": {"loguniform": [0.001, 0.1]},
    "rule.kind": {"choice": ["local", "interlocking"]},
    "rule.reach": {"integer": [1, 3], "when": {"rule.kind": "interlocking"}},
    "blocks.at": {"choice": [["layer2"], ["layer2", "layer3"]]},
    "training.batch": {"quniform": [32, 128, 32]},
}
NARROW = {"optimizer.lr": {"uniform": [0.001, 0.1]}}


def ask(search: Any, trial: int) -> dict[str, Any]:
    """One trial, and what became of it: a rate near 0.03 is good."""
    suggested = search.suggest(f"t{trial}")
    value = 1 - 10 * abs(suggested["optimizer.lr"] - 0.03)
    search.on_trial_result(f"t{trial}", {METRIC: value, "training_iteration": 1})
    search.on_trial_complete(f"t{trial}", {METRIC: value})
    return suggested


@pytest.mark.parametrize(
    ("kind", "written"), [("optuna", WIDE), pytest.param("bayesopt", NARROW, marks=BAYESOPT)]
)
def test_what_a_searcher_knows_survives(kind: str, written: Any, tmp_path: Path) -> None:
    space = Space.read(written, KEYS, ())
    settings = make_settings({"searcher": {"kind": kind, "startup": 3}, "trials": 9, "seed": 1})
    assert known_points(settings, space) == {}
    search = make_search(settings, space, {})
    before = [ask(search, trial) for trial in range(6)]
    search.save(str(tmp_path / "state"))
    state = search.get_state()
    after = [ask(search, trial) for trial in range(6, 9)]

    again = make_search(settings, space, {})
    again.set_state(state)
    again.restore(str(tmp_path / "state"))
    assert [ask(again, trial) for trial in range(6, 9)] == after
    everything = [*before, *after]
    assert [suggested.pop("trial") for suggested in everything] == list(range(9))
    for suggested in everything:
        for key, value in suggested.items():
            assert space[key].has(value), (key, value)
        assert ("rule.reach" in suggested) == (suggested.get("rule.kind") == "interlocking")


def test_tune_keeps_what_a_searcher_knows_through_its_own_wrappers(tmp_path: Path) -> None:
    """As `tune.run` has it: a generator around a limit around numbers around Optuna."""
    space = Space.read(WIDE, KEYS, ())
    tree = {"searcher": {"kind": "optuna", "startup": 3}, "trials": 9, "seed": 1}

    def wrapped() -> Any:
        return SearchGenerator(ConcurrencyLimiter(make_search(make_settings(tree), space, {}), 2))

    generator = wrapped()
    assert [ask(generator.searcher, trial)["trial"] for trial in range(6)] == list(range(6))
    generator.save_to_dir(str(tmp_path), "now")
    after = [ask(generator.searcher, trial) for trial in range(6, 9)]
    again = wrapped()
    again.restore_from_dir(str(tmp_path))
    assert [ask(again.searcher, trial) for trial in range(6, 9)] == after
    assert [suggested["trial"] for suggested in after] == [6, 7, 8]
