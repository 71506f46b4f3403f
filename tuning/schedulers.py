"""Which trials go on: Tune's schedulers, in steps of training, and what they know after a resume.

Tune restores trials and searchers but no scheduler. One that compares trials is told again what the
finished trials reported; the others report again themselves when they go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from learning.errors import UserError
from tuning.dimensions import Dimension
from tuning.jobs import FAILED, NUMBER, STEP
from tuning.settings import (
    ASHASettings,
    HyperBandSettings,
    MedianSettings,
    PBTSettings,
    SweepSettings,
)
from tuning.space import Space

Told = Callable[[Mapping[str, Any]], Iterable[dict[str, Any]]]
"""Tune's configuration of a trial to all that the trial has reported, by its records."""


class _Remembers:
    """Tells a scheduler of a resumed sweep what the trials that are over have reported."""

    told: Told | None = None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)  # pyright: ignore[reportAttributeAccessIssue]
        if trial.is_finished() and self.told is not None:
            results = list(self.told(trial.config))
            for result in results:
                self.on_trial_result(tune_controller, trial, result)
            if results:
                self.on_trial_complete(tune_controller, trial, results[-1])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return super().on_trial_result(  # pyright: ignore[reportAttributeAccessIssue]
            tune_controller, trial, result
        )

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(  # pyright: ignore[reportAttributeAccessIssue]
            tune_controller, trial, result
        )


class ASHA(_Remembers, ASHAScheduler):
    """Successive halving that remembers."""


class Median(_Remembers, MedianStoppingRule):
    """The median rule, remembering; before there is a median nobody waits for it."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        # A pause would end actors that the same trial starts again a moment later.
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision


class HyperBand(HyperBandScheduler):
    """HyperBand whose new brackets do not wait for trials that were over before a resume."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not trial.is_finished():
            super().on_trial_add(tune_controller, trial)


class PBT(PopulationBasedTraining):
    """Population based training; a trial that takes over stays itself, by its number."""

    def _get_new_config(
        self, trial: Trial, trial_to_clone: Trial
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, NUMBER: trial.config[NUMBER]}, operations

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if FAILED in result:
            return TrialScheduler.STOP
        return super().on_trial_result(tune_controller, trial, result)


def make_scheduler(
    settings: SweepSettings, space: Space, steps: int, every: int, told: Told | None
) -> TrialScheduler:
    """The scheduler of a sweep.

    Args:
        steps: of a whole run.
        every: steps between evaluations.
        told: what trials that are over have reported, in a resumed sweep.
    """
    chosen, mode = settings.scheduler, settings.better
    common: dict[str, Any] = {"metric": settings.metric, "mode": mode}
    if isinstance(chosen, ASHASettings):
        scheduler = ASHA(
            time_attr=STEP,
            grace_period=chosen.grace or every,
            max_t=chosen.longest or steps,
            reduction_factor=chosen.reduction,
            brackets=chosen.brackets,
            stop_last_trials=chosen.longest is not None and chosen.longest < steps,
            **common,
        )
        scheduler.told = told
        return scheduler
    if isinstance(chosen, MedianSettings):
        scheduler = Median(
            time_attr=STEP,
            grace_period=chosen.grace or every,
            min_samples_required=chosen.least_trials,
            **common,
        )
        scheduler.told = told
        return scheduler
    if isinstance(chosen, HyperBandSettings):
        # In evaluations: brackets shorter than one would end before anything is known.
        return HyperBand(
            time_attr="training_iteration",
            max_t=max(1, (chosen.longest or steps) // every),
            reduction_factor=chosen.reduction,
            **common,
        )
    if isinstance(chosen, PBTSettings):
        keys = {key: space[key] for key in chosen.mutate}
        return PBT(
            time_attr=STEP,
            perturbation_interval=chosen.every or every,
            hyperparam_mutations={k: _mutation(d, settings.seed) for k, d in keys.items()},
            quantile_fraction=chosen.quantile,
            resample_probability=chosen.resample,
            perturbation_factors=(chosen.factors[1], chosen.factors[0]),
            custom_explore_fn=_Bounds(keys),
            log_config=False,
            **common,
        )
    return FIFOScheduler()


class _Bounds:
    """Keeps perturbed values within their ranges."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._dimensions = dict(dimensions)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        kept = {
            key: d.clip(config[key])
            for key, d in self._dimensions.items()
            if d.kind not in ("choice", "grid")
        }
        return {**config, **kept}


def _mutation(dimension: Dimension, seed: int) -> Any:
    if dimension.kind in ("choice", "grid"):
        return list(dimension.values)
    generator = random.Random(f"{seed} {dimension.key}")
    return lambda: dimension.sample(generator)


def check_scheduler(settings: SweepSettings, space: Space, steps: int, every: int) -> None:
    """Check that a scheduler can work on a space and on runs of this length.

    Raises:
        UserError: naming the setting that does not fit.
    """
    chosen = settings.scheduler
    grace = getattr(chosen, "grace", None)
    longest = getattr(chosen, "longest", None)
    exploits = chosen.every if isinstance(chosen, PBTSettings) else None
    for name, value in (("grace", grace), ("longest", longest), ("every", exploits)):
        if value is not None and value > steps:
            raise UserError(
                f"sweep.scheduler.{name} = {value} is above the {steps} steps of a run: lower it"
            )
    if grace is not None and longest is not None and grace > longest:
        raise UserError(f"sweep.scheduler.grace = {grace} is above longest = {longest}: swap them")
    if every > (longest or steps):
        raise UserError(
            f"training.evaluate_every = {every} is above the {longest or steps} steps of a trial, "
            f"so that sweep.scheduler.kind = {chosen.kind} learns nothing: lower it"
        )
    length = {"training.steps", "training.epochs", "training.batch", "training.evaluate_every"}
    varied = sorted(length & {d.path for d in space})
    if varied and chosen.kind in ("asha", "hyperband") and longest is None:
        raise UserError(
            f"space varies {varied[0]}, and with it how long a trial is: set "
            "sweep.scheduler.longest in steps"
        )
    if isinstance(chosen, PBTSettings):
        for key in space.keys:
            if key.startswith(("blocks.", "engine.", "lanes.", "network.")):
                raise UserError(
                    f"space varies {key}, and sweep.scheduler.kind = pbt moves states between "
                    "trials, which must be cut and reserved alike: leave it out"
                )
        for key in chosen.mutate:
            _check_mutation(key, space)


def _check_mutation(key: str, space: Space) -> None:
    if key not in space.keys:
        raise UserError(
            f"sweep.scheduler.mutate names {key}, which space does not vary: name one of "
            f"{', '.join(space.keys)}"
        )
    dimension = space[key]
    if dimension.when:
        raise UserError(
            f"sweep.scheduler.mutate names {key}, which is there only `when`: name others"
        )
    is_number = all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in dimension.extremes()
    )
    if not key.startswith(("optimizer.", "rule.")) or not is_number:
        raise UserError(
            f"sweep.scheduler.mutate names {key}, and what is learnt so far fits only numbers of "
            "optimizer and rule: name such"
        )
