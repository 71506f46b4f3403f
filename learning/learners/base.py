"""What all learners share: the settings of a run, sums over shards, states by part."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from learning.settings import (
    CodecSettings,
    Float32CodecSettings,
    OptimizerSettings,
    PrecisionSettings,
    ScheduleSettings,
    UpdateSettings,
)


@dataclass(frozen=True)
class LearnerSettings:
    """What every learner of a run shares.

    Attributes:
        batch: samples of a step, over all shards.
        shards: microbatches of a step.
        steps: steps of the run, for the schedule.
        update: what happens between gradients and optimizer, in blocks.
        codec: of the messages between blocks.
    """

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    precision: PrecisionSettings
    seed: int
    batch: int
    shards: int
    steps: int
    update: UpdateSettings = field(default_factory=UpdateSettings)
    codec: CodecSettings = field(default_factory=Float32CodecSettings)


@dataclass
class Tally:
    """Sums over the shards of one step or evaluation; a sample has one label or one a token."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    samples: int = 0
    labels: int = 0

    def add(self, loss: Tensor, scores: Tensor, y: Tensor) -> None:
        """Add a shard: the sum of its losses, scores (b, ..., C), labels y (b, ...)."""
        self.loss = self.loss + loss.detach()
        self.correct = self.correct + (scores.argmax(-1) == y).sum()
        self.samples += len(y)
        self.labels += y.numel()

    def means(self) -> dict[str, float]:
        """Loss a sample and share of right labels."""
        return {
            "loss": float(self.loss) / self.samples,
            "accuracy": float(self.correct) / self.labels,
        }


def partition_state(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a learner's state by the first part of its names."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        kind, rest = name.split(".", 1)
        parts[kind][rest] = tensor
    return parts
