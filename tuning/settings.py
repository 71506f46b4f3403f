"""What a sweep file says besides the run's configuration: the section `sweep`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learning.bounds import (
    Count,
    Depth,
    DepthFrom0,
    Factor,
    FilePath,
    Fraction,
    Length,
    Name,
    Names,
    Reduction,
    Seconds,
    Seed,
    Steps,
    Value,
)
from learning.errors import UserError, shown
from learning.settings import Settings

Mode = Literal["min", "max"]


class NoScheduler(Settings):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class ASHASettings(Settings):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934)."""

    kind: Literal["asha"] = "asha"
    grace: Steps | None = Field(
        default=None, description="steps that each trial has; null: to its first evaluation"
    )
    longest: Steps | None = Field(default=None, description="steps; null: those of the run")
    reduction: Reduction = Field(default=3.0, description="one of so many goes on at each rung")
    brackets: Depth = 1


class MedianSettings(Settings):
    """Stops what is worse than the median of the others so far (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace: Steps | None = Field(
        default=None, description="steps that each trial has; null: to its first evaluation"
    )
    least_trials: Count = Field(default=3, description="no median of fewer")


class HyperBandSettings(Settings):
    """HyperBand (Li et al. 2018, arXiv 1603.06560): brackets whose trials wait for each other."""

    kind: Literal["hyperband"] = "hyperband"
    longest: Steps | None = Field(default=None, description="steps; null: those of the run")
    reduction: Reduction = 3.0


class PBTSettings(Settings):
    """Population based training (Jaderberg et al. 2017, arXiv 1711.09846)."""

    kind: Literal["pbt"] = "pbt"
    mutate: Names = Field(min_length=1, description="keys of space that change")
    every: Steps | None = Field(
        default=None, description="steps between exploits; null: each evaluation"
    )
    quantile: Length = Field(
        default=0.25, le=0.5, description="this share, the worst, copies as many of the best"
    )
    resample: Fraction = Field(
        default=0.25, description="how likely a value is drawn anew, not perturbed"
    )
    factors: tuple[Factor, Factor] = Field(default=(0.8, 1.2), description="of a perturbation")


SchedulerSettings = Annotated[
    NoScheduler | ASHASettings | MedianSettings | HyperBandSettings | PBTSettings,
    Field(discriminator="kind"),
]


class RandomSearcher(Settings):
    """Points by chance, the points of grids in turn."""

    kind: Literal["random"] = "random"


class GridSearcher(Settings):
    """All points of the space."""

    kind: Literal["grid"] = "grid"


class OptunaSearcher(Settings):
    """Optuna's tree-structured Parzen estimator; conditions of the space are known to it."""

    kind: Literal["optuna"] = "optuna"
    startup: Count = Field(default=10, description="trials by chance before it")


class BayesOptSearcher(Settings):
    """Gaussian processes over continuous ranges (the package bayesian-optimization)."""

    kind: Literal["bayesopt"] = "bayesopt"
    startup: Count = Field(default=10, description="trials by chance before it")


SearcherSettings = Annotated[
    RandomSearcher | GridSearcher | OptunaSearcher | BayesOptSearcher, Field(discriminator="kind")
]


class StopSettings(Settings):
    """When a whole sweep is over before all its trials are."""

    value: Value | None = Field(default=None, description="of the metric: good enough")
    minutes: Seconds | None = None


class SweepSettings(Settings):
    """How a space is searched."""

    directory: FilePath | None = Field(default=None, description="null: sweeps/<run.name>-<time>")
    metric: Name = "validation/accuracy"
    mode: Mode | None = Field(default=None, description="null: max of accuracy, min of loss")
    trials: Count | None = Field(default=None, description="null: the points of the grid")
    parallel: Depth | None = Field(
        default=None, description="trials at once; null: as many as there is room for"
    )
    seed: Seed = 0
    retries: DepthFrom0 = Field(default=2, description="of a trial whose processes are lost")
    scheduler: SchedulerSettings = NoScheduler()
    searcher: SearcherSettings = RandomSearcher()
    stop: StopSettings = StopSettings()

    @property
    def better(self) -> Mode:
        """Whether more of the metric is better, or less."""
        return self.mode or best_mode(self.metric)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        scheduler, searcher = self.scheduler, self.searcher
        if self.mode is not None and self.mode != best_mode(self.metric):
            raise ValueError(
                f"sweep.mode = {self.mode} looks for the worst {self.metric}: use "
                f"{best_mode(self.metric)} or leave it out"
            )
        if isinstance(scheduler, PBTSettings) and searcher.kind not in ("random", "grid"):
            raise ValueError(
                f"sweep.scheduler.kind = pbt changes values itself: sweep.searcher.kind = "
                f"{searcher.kind} would not know, use random or grid"
            )
        if (
            isinstance(scheduler, PBTSettings)
            and not 0 < scheduler.factors[0] <= 1 <= (scheduler.factors[1])
        ):
            raise ValueError(
                f"sweep.scheduler.factors = {list(scheduler.factors)} do not go down and up: use "
                "one up to 1 and one from 1"
            )
        return self


def best_mode(metric: str) -> Mode:
    """What is better of a metric, by its name."""
    return "max" if metric.endswith("accuracy") else "min"


def metric_names(blocks: int) -> list[str]:
    """The metrics that every trial reports at each evaluation.

    Args:
        blocks: the least number that a trial of the sweep has.
    """
    learners = ["", *(f"block{k}/" for k in range(1, blocks + 1))]
    return [f"validation/{name}{what}" for name in learners for what in ("accuracy", "loss")]


def block_of(metric: str) -> int | None:
    """The block that a metric is of, by its name; None: the last one, or it is no metric."""
    found = re.fullmatch(r"validation/block(\d+)/(?:accuracy|loss)", metric)
    return int(found[1]) if found else None


def check_metric(metric: str, blocks: int) -> None:
    """Check that all trials report a metric.

    Args:
        blocks: the least number that a trial of the sweep has.

    Raises:
        UserError: with the nearest name.
    """
    names = metric_names(blocks)
    if metric in names:
        return
    if re.fullmatch(r"test/.*", metric):
        raise UserError(
            f"sweep.metric = {metric} is of the test rows, which no choice may depend on: use "
            f"{_nearest(metric.replace('test', 'validation', 1), names) or names[0]}"
        )
    block = block_of(metric)
    if block is not None and block > blocks:
        raise UserError(
            f"sweep.metric = {metric} is of block {block}, and a trial may have {blocks} "
            "blocks: use validation/accuracy, that of the last block"
        )
    near = _nearest(metric, names)
    hint = f"did you mean {near}?" if near else f"use one of {', '.join(names)}"
    raise UserError(f"sweep.metric = {shown(metric)} does not exist: {hint}")


def _nearest(name: str, names: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return near[0] if near else None
