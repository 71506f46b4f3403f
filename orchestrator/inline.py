"""The sequential engine behind the same interface as the Ray engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from actors.carrying import carried_here
from actors.operations import Span
from learning.build import Program
from learning.data import Batches
from learning.sequential import SequentialEngine
from learning.units import Unit
from orchestrator.events import Evaluated, Event, Kept, Metrics, SnapshotTaken, StepDone, Worked
from orchestrator.program import Calendar
from orchestrator.stopping import Stopping

Probe = Callable[[int, SequentialEngine], Metrics]
"""Looks at an engine that is about to run a step, and leaves it as it is; adds to its metrics."""


class InlineEngine:
    """Trains in this process, one operation after the other."""

    def __init__(
        self,
        program: Program,
        blocks: Sequence[Sequence[Unit]],
        batches: Batches,
        *,
        evaluation_batch: int,
        threads: int,
        probe: Probe | None = None,
    ) -> None:
        """Build the learners.

        Args:
            probe: called before each step with evaluations after it.
        """
        self._probe = probe
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        # As actors would get them; the user's own stay as they are.
        self._engine = SequentialEngine(program, [carried_here(units) for units in blocks])
        self._batches, self._evaluation_batch = batches, evaluation_batch

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        self._engine.load_state_dict(state, step)

    def train(
        self,
        steps: range,
        calendar: Calendar,
        kept: Kept | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Event]:
        stopping = stopping or Stopping()
        for step in steps:
            if stopping.asked:  # before the first step; there is nothing to keep
                return
            probed: Metrics = {}
            if self._probe is not None and step in calendar.evaluations:
                probed = self._probe(step, self._engine)
            started = time.time_ns()
            metrics = self._engine.train_step(step, self._batches.shard)
            yield Worked("all", [Span("U", step, 0, started, time.time_ns(), 0, 0)], 0)
            yield StepDone(step, {n: {**m, **probed.get(n, {})} for n, m in metrics.items()})
            for split in calendar.evaluations.get(step, ()):
                batches = self._batches.evaluation(split, self._evaluation_batch)
                yield Evaluated(step, split, self._engine.evaluate(step, split, batches))
            stops = stopping.asked
            if stops or step in calendar.snapshots:
                state = self._engine.state_dict()
                copies = {
                    learner: {n: t.detach().clone() for n, t in tensors.items()}
                    for learner, tensors in state.items()
                }
                yield SnapshotTaken(step, copies)
            if stops:
                return

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)
