"""The Ray engine: a chain of actors, the stream of steps through it, and what follows a loss.

The driver is not in the data path: actors send to one another, and it hears of finished chunks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

from learning.build import Program
from learning.data import AugmentSettings, Dataset, DataSettings
from learning.units import Unit
from orchestrator.chain import Chain, SourcePlace, Transport
from orchestrator.events import Event, Kept, SnapshotTaken, StepDone, Worked
from orchestrator.incidents import Incident
from orchestrator.losses import ActorLostError
from orchestrator.plan import Plan
from orchestrator.program import Calendar
from orchestrator.recovery import Recovery, RecoverySettings
from orchestrator.stream import Stream


class RayEngine:
    """Blocks, feedback modules and perhaps the source as actors in placement groups."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        blocks: Sequence[Sequence[Unit]],
        data: DataSettings | Dataset,
        augment: AugmentSettings,
        *,
        evaluation_batch: int,
        threads: int,
        window: int,
        transport: Transport = "object_store",
        source: SourcePlace = "block1",
        recovery: RecoverySettings | None = None,
    ) -> None:
        """Start all actors and connect them.

        Args:
            data: settings of data that are loaded where batches are made, or data in memory.
            threads: torch threads of each actor.
            window: steps that a block may run ahead of the next one.
            transport: how messages travel between actors.
            source: who makes the batches.
            recovery: what follows a loss; None for the defaults.

        Raises:
            UserError: when the plan does not fit the cluster, or an actor cannot reach another.
        """
        recovery = recovery or RecoverySettings()
        self._recovery = Recovery(recovery)
        self._chain = Chain(
            program,
            plan,
            blocks,
            data,
            augment,
            evaluation_batch=evaluation_batch,
            threads=threads,
            window=window,
            transport=transport,
            source=source,
            patience=recovery.patience,
        )

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        self._chain.load(state, step)

    def train(self, steps: range, calendar: Calendar, kept: Kept | None = None) -> Iterator[Event]:
        """Train; after a loss, go back to what was kept and do again what came after.

        Of steps that are done again nothing is told again but what the actors did, and snapshots.

        Raises:
            ActorLostError: when actors are lost, and there is no way back or there were too many.
        """
        start = told = steps.start
        incident: Incident | None = None
        numbers = itertools.count(1)
        try:
            while True:
                began, new = time.monotonic(), True
                rest = range(start, steps.stop)
                stream = Stream(self._chain, calendar, rest, self._recovery.settings.hang)
                try:
                    for event in stream.events():
                        if isinstance(event, StepDone):
                            new = event.step >= told
                            told = max(told, event.step + 1)
                            if new and incident is not None and kept is not None:
                                incident.seconds["replaying"] = time.monotonic() - began
                                over, incident = incident, None
                                kept.record(over)
                        if new or isinstance(event, (Worked, SnapshotTaken)):
                            yield event
                    return
                except ActorLostError as error:
                    if incident is not None and kept is not None:  # it was not over yet
                        kept.record(incident)
                    incident = Incident(next(numbers), time.time(), told, ended=True)
                    self._recovery.recover(error, self._chain, stream, incident, kept)
                    incident.ended, start = False, incident.resumed
        finally:
            if incident is not None and kept is not None:
                kept.record(incident)

    def close(self) -> None:
        """End the actors and give their resources back."""
        self._chain.close()
