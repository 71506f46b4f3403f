"""Which points of a space become trials: by chance, all of them, or as Optuna and BayesOpt say."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from learning.errors import UserError
from tuning.jobs import LIKE, NUMBER
from tuning.settings import BayesOptSearcher, OptunaSearcher, PBTSettings, SweepSettings
from tuning.space import Dimension, Space, Values

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial

Points = dict[int, Values]
"""The values of trials that are known beforehand, by number."""


def known_points(settings: SweepSettings, space: Space) -> Points:
    """The points of all trials, where the searcher needs no results to tell them; else none.

    Raises:
        UserError: when there is no number of trials, or the searcher cannot search this space.
    """
    kind, trials = settings.searcher.kind, settings.trials
    if kind == "grid" or (kind == "random" and trials is None and _is_grid(space)):
        points = space.grid()
        if trials is not None and trials != len(points):
            raise UserError(
                f"sweep.trials = {trials} and the grid has {len(points)} points: leave trials out"
            )
        return dict(enumerate(points))
    if trials is None:
        raise UserError("sweep.trials is missing, and only a grid has a number of its own: set it")
    if kind == "random":
        return dict(enumerate(space.samples(trials, settings.seed)))
    _check_searcher(settings, space)
    return {}


def _is_grid(space: Space) -> bool:
    return all(dimension.kind == "grid" for dimension in space)


def _check_searcher(settings: SweepSettings, space: Space) -> None:
    kind = settings.searcher.kind
    for dimension in space:
        if dimension.kind == "grid":
            raise UserError(
                f"space.{dimension.key} is a grid, and searcher.kind = {kind} chooses points "
                "itself: use choice"
            )
        if kind == "bayesopt" and (dimension.kind != "uniform" or dimension.when):
            what = "has a condition" if dimension.when else f"is a {dimension.kind}"
            raise UserError(
                f"space.{dimension.key} {what}, and searcher.kind = bayesopt knows uniform ranges "
                "only: use searcher.kind = optuna"
            )
    module, package = {
        "optuna": ("optuna", "blocklocal[sweeps]"),
        "bayesopt": ("bayes_opt", "bayesian-optimization<2"),
    }[kind]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"searcher.kind = {kind} needs a package that is not installed: pip install '{package}'"
        )
    if kind == "bayesopt":
        bayes_opt = importlib.import_module(module)
        if not hasattr(bayes_opt, "UtilityFunction"):
            raise UserError(
                f"searcher.kind = bayesopt needs an older package than bayesian-optimization "
                f"{getattr(bayes_opt, '__version__', '?')}: pip install '{package}'"
            )


def mutated(settings: SweepSettings) -> tuple[str, ...]:
    """The keys whose values Tune itself changes."""
    return settings.scheduler.mutate if isinstance(settings.scheduler, PBTSettings) else ()


def make_search(settings: SweepSettings, space: Space, points: Points) -> Any:
    """Tune's searcher, or generator of trials."""
    searcher, mode = settings.searcher, settings.better
    if points:
        changing = mutated(settings)
        waits = settings.scheduler.kind in ("pbt", "hyperband")
        return BasicVariantGenerator(
            points_to_evaluate=[
                {NUMBER: number, LIKE: number, **{key: values[key] for key in changing}}
                for number, values in points.items()
            ],
            # Trials that wait for each other count as running: only room limits them.
            max_concurrent=0 if waits else settings.parallel or 0,
        )
    if isinstance(searcher, OptunaSearcher):
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=searcher.startup)
        found: Searcher = OptunaSearch(
            space=_ForOptuna(space), metric=settings.metric, mode=mode, sampler=sampler
        )
    else:
        assert isinstance(searcher, BayesOptSearcher)
        from ray.tune.search.bayesopt import BayesOptSearch

        found = BayesOptSearch(
            space={d.key: (d.low, d.high) for d in space},
            metric=settings.metric,
            mode=mode,
            random_state=settings.seed,
            random_search_steps=searcher.startup,
            skip_duplicate=False,  # a sweep has as many trials as asked for
        )
    return Numbered(found)


class Numbered(Searcher):
    """Numbers the trials of another searcher from 0."""

    def __init__(self, searcher: Searcher) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher, self._next = searcher, 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        suggested = self.searcher.suggest(trial_id)
        # Tune's mark of a searcher that is done is a word.
        if not isinstance(suggested, dict):
            return suggested
        number, self._next = self._next, self._next + 1
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in suggested.items()}
        return {NUMBER: number, **plain}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.searcher.on_trial_complete(trial_id, result=result, error=error)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._next = state["next"]

    def save(self, checkpoint_path: str) -> None:
        self.searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.searcher.restore(checkpoint_path)


class _ForOptuna:
    """Asks Optuna for the values that are there, each after those that it depends on."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def __call__(self, trial: OptunaTrial) -> Values:
        return self._space.choose(lambda dimension: _suggest(trial, dimension))


def _suggest(trial: OptunaTrial, dimension: Dimension) -> Any:
    key = dimension.key
    if dimension.kind == "choice":
        positions = range(len(dimension.values))  # Optuna takes no lists
        at = trial.suggest_categorical(key, positions)
        assert isinstance(at, int)
        return dimension.values[at]
    if dimension.kind == "integer":
        return trial.suggest_int(key, int(dimension.low), int(dimension.high))
    if dimension.kind == "quniform":
        return dimension.at(trial.suggest_int(key, 0, dimension.count - 1))
    return trial.suggest_float(
        key, dimension.low, dimension.high, log=dimension.kind == "loguniform"
    )
