"""The schedule of a run: how many steps, and what happens after which."""

from __future__ import annotations

from dataclasses import dataclass

from learning.data import Batches
from orchestrator.program import Calendar


@dataclass(frozen=True)
class Schedule:
    """Which steps a run has and what happens after which.

    Attributes:
        evaluate_every: steps between evaluations; each one is also a checkpoint.
        checkpoint_every: steps between further checkpoints; None: no further ones.
        checkpoint_seconds: likewise, seconds.
    """

    steps: int
    evaluate_every: int
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = None

    def calendar(self, batches: Batches, evaluation_batch: int) -> Calendar:
        """Validation every so many steps and last, the test set last; checkpoints with it."""
        after = [*range(self.evaluate_every - 1, self.steps, self.evaluate_every), self.steps - 1]
        counts = {
            split: batches.evaluation_batches(split, evaluation_batch)
            for split in ("validation", "test")
        }
        evaluations = {
            step: tuple(
                split
                for split, count in counts.items()
                if count and (split == "validation" or step == self.steps - 1)
            )
            for step in after
        }
        every = self.checkpoint_every
        between = range(every - 1, self.steps, every) if every else ()
        snapshots = frozenset({*after, *between})
        return Calendar(evaluations, snapshots, counts, self.checkpoint_seconds)
