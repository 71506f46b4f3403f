"""What training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from learning.data import Preprocessing
from learning.prediction import Trained
from orchestrator.plan import Plan
from orchestrator.rundir import RunDirectory


@dataclass
class Result:
    """What training leaves behind.

    Attributes:
        directory: the run directory.
        metrics: of the last evaluation of each split, `test/block3/accuracy` and the like.
        checkpoint: how many steps the weights have learnt: all, or those that `StopTraining` names.
        trained: the original module with those weights, and what it was trained to see.
        stopped: whether an observer ended the run early.
    """

    directory: Path
    plan: Plan
    metrics: dict[str, float]
    checkpoint: int
    trained: Trained
    stopped: bool = False

    @property
    def model(self) -> nn.Module:
        """The original module, in evaluation mode; it takes rows that are preprocessed."""
        return self.trained.model

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What turns raw rows into what the model takes."""
        return self.trained.preprocessing

    def predict(self, x: Any) -> np.ndarray:
        """The labels of raw rows, see `Trained.predict`."""
        return self.trained.predict(x)

    def scores(self, x: Any) -> np.ndarray:
        """The scores of raw rows, see `Trained.scores`."""
        return self.trained.scores(x)


def last_evaluations(run: RunDirectory) -> dict[str, float]:
    """The metrics of the last evaluation of each split, `test/block3/accuracy` and the like."""
    last: dict[str, float] = {}
    for record in run.read_metrics():
        split = record["split"]
        if split != "train":
            last |= {
                f"{split}/{name}": value
                for name, value in record.items()
                if name not in ("step", "split")
            }
    return last
