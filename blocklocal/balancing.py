"""What the blocks of a cut cost under the chosen rule, within what planning may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from learning.build import Program
from learning.checks import check_program
from learning.data import Batches
from learning.errors import UserError
from learning.messages import block_name
from learning.units import Unit
from orchestrator.costs import measure_costs, uncompiled
from orchestrator.limits import works

SECONDS = 1.0
"""What measuring times may take; twice what timing the units took, where that is more."""
CUTS = 6
"""The most cuts that are measured."""
REPEATS = 3


class RuleCosts:
    """Measures cuts, until there are enough or the time is up.

    Made just before the units are timed. Where bytes are wanted no clock has a say: they are the
    same in every run, and so is the cut.
    """

    def __init__(
        self,
        program_of: Callable[[Sequence[tuple[int, ...]]], Program],
        batches: Batches,
        sample: Tensor,
        *,
        balance: Literal["time", "memory"],
        threads: int,
    ) -> None:
        """Measure nothing yet.

        Args:
            program_of: output shapes of the blocks to the program of that cut.
            sample: a shard of inputs, (b, ...).
            balance: whether seconds of a step or bytes kept for backward passes are wanted.
            threads: of each actor.
        """
        self._program_of, self._batches, self._sample = program_of, batches, sample
        self._balance, self._threads = balance, threads
        self._made, self._ends = time.monotonic(), 0.0
        self._longest, self._cuts = 0.0, 0

    def __call__(
        self, blocks: Sequence[Sequence[Unit]], shapes: Sequence[tuple[int, ...]]
    ) -> Sequence[float] | None:
        """The cost of each block, in seconds or bytes, its units run as written.

        None where the rule cannot have this cut, and when no more are measured.

        Args:
            blocks: the units of each block.
            shapes: of the blocks' outputs, without batch.

        Raises:
            UserError: for a network whose output does not fit the data, and what `measure_costs`
                raises.
        """
        started = time.monotonic()
        if not self._cuts:
            self._ends = started + max(SECONDS, 2 * (started - self._made))
        late = self._balance == "time" and started + self._longest > self._ends
        if self._cuts == CUTS or late:
            return None
        self._cuts += 1
        program = uncompiled(self._program_of(shapes))
        try:
            check_program(program, blocks, self._sample)
        except UserError:
            return None  # not a cut to choose; the chosen one is checked again, and says so
        costs = measure_costs(
            program,
            blocks,
            self._batches,
            threads=self._threads,
            repeats=REPEATS if self._balance == "time" else 1,
        )
        self._longest = max(self._longest, time.monotonic() - started)
        work = works(program, costs)
        of_blocks = [work[block_name(k)] for k in range(1, len(blocks) + 1)]
        if self._balance == "time":
            return [own.seconds for own in of_blocks]
        return [own.activations for own in of_blocks]
