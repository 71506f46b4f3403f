"""What the trials of a sweep share, and what one of them is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuning.space import Values

NUMBER, LIKE = "trial", "like"
"""Keys in what Tune knows of a trial: its number, and whose point it trains, its own or that of the
trial that it has taken over from. All other keys are varied settings."""
STEP, FAILED, RUN = "step", "failed", "run"
"""What a report has besides metrics; `failed` is the sentence of a trial that cannot go on."""


class Listener(Protocol):
    """Who trains a trial tells it how it goes; both methods raise StopTraining when it is over."""

    def tell(self, steps: int, metrics: Mapping[str, float], last: bool) -> None:
        """Report an evaluation, whose checkpoint is complete, and wait to be asked for more.

        Args:
            metrics: by name, `validation/block2/loss` and so on.
            last: whether it is that of the last step.

        Raises:
            UserError: when the metric that all trials are compared by is not among them.
        """
        ...

    def check(self) -> None:
        """Find out whether to go on; called at each step."""
        ...


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        number: of the trial.
        values: dotted key to value.
        directory: of the run: a new one, or one that this trial has left.
        start: checkpoints of another trial that a new run begins with.
        told: Tune knows all evaluations up to this step.
        hands_over: what is told may be taken over by others, so that its checkpoint must be there.
    """

    number: int
    values: Values
    directory: Path
    start: Path | None
    told: int
    hands_over: bool = False


class Runner(Protocol):
    """Trains a request to its end."""

    def __call__(self, request: Request, listener: Listener) -> None:
        """Train, or go on; the listener hears again of evaluations after `request.told`.

        Raises:
            UserError: for what cannot be trained.
            StopTraining: that the listener raised.
        """
        ...


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        directory: of all runs of the sweep; every node sees it.
        points: the values of trials that are known beforehand, by number.
        metric: that every report must have.
        worst: what a trial that cannot be trained is worth.
        hands_over: whether trials go on from each other's states.
    """

    run: Runner
    directory: Path
    points: Mapping[int, Values]
    metric: str
    worst: float
    hands_over: bool = False
