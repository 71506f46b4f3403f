"""Recovery: what is done about lost actors, and how often.

Under `exact` all blocks go back to the last checkpoint and do again what came after. Batches and
all random draws are functions of seed and step, so the bits at the end are those of a run that lost
nothing.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Literal

from pydantic import Field

from learning.settings import Settings
from orchestrator.chain import Chain
from orchestrator.events import Restore
from orchestrator.incidents import Incident, UnrecoveredError
from orchestrator.losses import ActorLostError, NoRoomError
from orchestrator.stream import Stream

HOUR = 3600.0


class RecoverySettings(Settings):
    """What happens when actors or nodes are lost."""

    mode: Literal["exact", "off"] = Field(
        default="exact", description="exact: all go back to the last checkpoint; off: the run ends"
    )
    max_failures: int = Field(default=20, ge=0, description="an hour; one more ends the run")
    patience: float = Field(
        default=300.0, gt=0, allow_inf_nan=False, description="seconds to wait for lost resources"
    )
    hang: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="least seconds that count as a hang"
    )


class Recovery:
    """Recovers a chain from losses, within a budget."""

    def __init__(self, settings: RecoverySettings) -> None:
        self.settings = settings
        self._incidents = 0
        self._times: deque[float] = deque()

    def recover(
        self,
        error: ActorLostError,
        chain: Chain,
        stream: Stream,
        step: int,
        restore: Restore | None,
    ) -> Incident:
        """Find out who is lost, start them again, and take everyone back.

        Args:
            step: after the last that all blocks had finished.
            restore: gives the state that was kept last.

        Returns:
            What happened, without the time to do steps again.

        Raises:
            ActorLostError: when the run cannot go on.
        """
        self._incidents += 1
        incident = Incident(self._incidents, time.time(), step)
        incident.seconds["noticing"] = time.monotonic() - stream.heard
        patience = self.settings.patience
        while True:
            with incident.phase("ending"):
                incident.add(chain.lost(patience), stream.last)
                if restore is None or self.settings.mode == "off":
                    raise _final(incident, error)
                self._spend(incident, error)
                incident.add(stream.halt(patience), stream.last)
            try:
                with incident.phase("starting"):
                    chain.make_room(patience)
                    chain.renew()
                with incident.phase("restoring"):
                    incident.resumed, state = restore(step)
                    if state is not None:
                        chain.load(state, incident.resumed)
                return incident
            except NoRoomError:
                raise
            except ActorLostError as another:
                error = another

    def _spend(self, incident: Incident, error: ActorLostError) -> None:
        """Take one from the budget of the last hour."""
        now, limit = time.monotonic(), self.settings.max_failures
        self._times.append(now)
        while self._times[0] < now - HOUR:
            self._times.popleft()
        if len(self._times) > limit:
            why = f"; more than engine.recovery.max_failures = {limit} in an hour"
            raise _final(incident, error, why) from error


def _final(incident: Incident, error: ActorLostError, why: str = "") -> UnrecoveredError:
    """What ends the run."""
    losses = [f"{loss.name} was lost: {loss.cause}" for loss in incident.losses]
    incident.ended = True
    return UnrecoveredError("; ".join(losses or [str(error)]) + why, incident)
