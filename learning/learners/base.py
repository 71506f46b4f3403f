"""What all learners share: the settings of a run, sums over shards, states by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learning.messages import Message
from learning.settings import (
    CodecSettings,
    Float32CodecSettings,
    OptimizerSettings,
    OuterSettings,
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
        outer: how lanes agree that learn apart; None: they share every update.
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
    outer: OuterSettings | None = None

    @property
    def alone(self) -> bool:
        """Whether a lane's updates are of its own shards only."""
        return self.outer is not None

    @property
    def agree_every(self) -> int:
        """Steps from one at which all lanes are the same to the next."""
        return 1 if self.outer is None else self.outer.every

    def samples(self, shards: int) -> int:
        """How many samples so many shards of a step have."""
        return self.batch * shards // self.shards


@dataclass
class Tally:
    """Sums over shards, or batches of an evaluation; a sample has one label or one a token."""

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

    def join(self, other: Tally) -> None:
        """Add the sums of another."""
        self.loss = self.loss + other.loss
        self.correct = self.correct + other.correct
        self.samples += other.samples
        self.labels += other.labels

    def means(self) -> dict[str, float]:
        """Loss a sample and share of right labels."""
        return {
            "loss": float(self.loss) / self.samples,
            "accuracy": float(self.correct) / self.labels,
        }


class ShardTallies:
    """The tallies of a step's shards, added in the order of the shards, whichever lane has them."""

    def __init__(self) -> None:
        self._tallies: dict[int, Tally] = {}

    def of(self, shard: int) -> Tally:
        """The tally of a shard."""
        return self._tallies.setdefault(shard, Tally())

    def means(self) -> dict[str, float]:
        """Loss and accuracy over all shards, {} where there was none."""
        if not self._tallies:
            return {}
        total = Tally()
        for shard in sorted(self._tallies):
            total.join(self._tallies[shard])
        return total.means()

    def partial(self) -> Message:
        """The tallies as `tally.<shard>.<field>`."""
        message: Message = {}
        for shard, tally in self._tallies.items():
            message[f"tally.{shard}.loss"] = torch.as_tensor(tally.loss)
            message[f"tally.{shard}.correct"] = torch.as_tensor(tally.correct)
            message[f"tally.{shard}.counts"] = torch.tensor([tally.samples, tally.labels])
        return message

    @staticmethod
    def merged(partials: Iterable[Message]) -> ShardTallies:
        """Those of all lanes, from what each one's `partial` gave."""
        tallies = ShardTallies()
        for partial in partials:
            for name, counts in partial.items():
                if name.startswith("tally.") and name.endswith(".counts"):
                    shard = int(name.split(".")[1])
                    samples, labels = counts.tolist()
                    loss, correct = (partial[f"tally.{shard}.{n}"] for n in ("loss", "correct"))
                    assert shard not in tallies._tallies, f"two lanes have shard {shard}"
                    tallies._tallies[shard] = Tally(loss, correct, samples, labels)
        return tallies


def partition_state(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a learner's state by the first part of its names."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        kind, rest = name.split(".", 1)
        parts[kind][rest] = tensor
    return parts
