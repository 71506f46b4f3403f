"""The Ray engine: a chain of actors, the stream of steps through it, and what follows a loss.

The driver is not in the data path: actors send to one another, and it hears of finished chunks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from torch import Tensor

from orchestrator.chain import Chain
from orchestrator.drains import DrainNotices
from orchestrator.elasticity import Elasticity
from orchestrator.events import Changed, Event, Kept, SnapshotTaken, StepDone, Worked
from orchestrator.incidents import Incident
from orchestrator.lane_settings import LaneSettings
from orchestrator.losses import ActorLostError
from orchestrator.program import Calendar
from orchestrator.rebalancing import Rebalancer
from orchestrator.recovery import Recovery
from orchestrator.settings import RecoverySettings
from orchestrator.states import load
from orchestrator.stopping import Stopping
from orchestrator.stream import Stream
from orchestrator.turns import Turn


class RayEngine:
    """A chain of actors that learns.

    Args:
        chain: which the engine closes.
        recovery: what follows a loss.
        lanes: how many there may be.
        rebalance: how much more of a step than planned a block may take, as a share, until it
            moves; None: however much.
    """

    def __init__(
        self,
        chain: Chain,
        recovery: RecoverySettings | None = None,
        lanes: LaneSettings | None = None,
        rebalance: float | None = None,
    ) -> None:
        self._chain = chain
        try:
            notices = DrainNotices()
        except BaseException:
            chain.close()
            raise
        rebalancer = None if rebalance is None else Rebalancer(chain.plan, rebalance)
        self._elasticity = Elasticity(chain, lanes or LaneSettings(), notices, rebalancer)
        self._recovery = Recovery(recovery or RecoverySettings(), chain, self._elasticity)

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        load(self._chain, state, step)

    def train(
        self,
        steps: range,
        calendar: Calendar,
        kept: Kept | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Event]:
        """Train; after a loss, go back to what was kept and do again what came after.

        Of steps that are done again nothing is told again but what the actors did, what changed
        in the chain, and snapshots. A run that is to stop does not recover: what it would go back
        to is kept already.

        Raises:
            ActorLostError: when actors are lost, and there is no way back or there were too many.
        """
        stopping = stopping or Stopping()
        start = told = steps.start
        incident: Incident | None = None
        opening: Turn | None = None
        numbers = itertools.count(1)
        try:
            while True:
                began, new = time.monotonic(), True
                rest = range(start, steps.stop)
                hang = self._recovery.settings.hang
                stream = Stream(
                    self._chain, calendar, rest, hang, self._elasticity, opening, stopping
                )
                try:
                    for event in stream.events():
                        if isinstance(event, StepDone):
                            new = event.step >= told
                            told = max(told, event.step + 1)
                            if new and incident is not None and kept is not None:
                                incident.seconds["replaying"] = time.monotonic() - began
                                over, incident = incident, None
                                kept.record(over)
                        if new or isinstance(event, (Worked, SnapshotTaken, Changed)):
                            yield event
                    return
                except ActorLostError as error:
                    if stopping.asked:
                        raise
                    if incident is not None and kept is not None:  # it was not over yet
                        kept.record(incident)
                    incident = Incident(next(numbers), time.time(), told, ended=True)
                    bound = _next_told(calendar, told, steps.stop)
                    with stopping.patiently(False):
                        opening = self._recovery.recover(error, stream, incident, kept, bound)
                    incident.ended, start = False, incident.resumed
        finally:
            if incident is not None and kept is not None:
                kept.record(incident)

    def close(self) -> None:
        """End the actors and give their resources back."""
        self._elasticity.close()
        self._chain.close()


def _next_told(calendar: Calendar, step: int, stop: int) -> int:
    """The first step from `step` on after which there is more than metrics, or the last."""
    steps = {*calendar.evaluations, *calendar.snapshots, stop - 1}
    return min(s for s in steps if s >= step)
