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
from orchestrator.events import Kept
from orchestrator.incidents import Incident
from orchestrator.losses import ActorLostError, NoRoomError
from orchestrator.stream import Stream

HOUR = 3600.0
SAME_STEP = 3  # losses without a step of progress; one more ends the run


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
        self._times: deque[float] = deque()
        self._step, self._stuck = -1, 0  # at which step losses come again and again

    def recover(
        self,
        error: ActorLostError,
        chain: Chain,
        stream: Stream,
        incident: Incident,
        kept: Kept | None,
    ) -> None:
        """Find out who is lost, start them again, and take everyone back.

        Args:
            incident: with the step after the last that all blocks had finished; all else but the
                time to do steps again is put into it.
            kept: gives the state that was kept last.

        Raises:
            ActorLostError: when the run cannot go on.
            UserError: when what was kept cannot be read.
        """
        incident.seconds["noticing"] = stream.silence
        self._stuck = self._stuck + 1 if self._step == incident.step else 1
        self._step = incident.step
        while True:
            with incident.phase("ending"):
                incident.add(chain.lost(), stream.last)
                if kept is None or self.settings.mode == "off":
                    raise _final(incident, error)
                self._spend(incident, error)
                incident.add(stream.halt(), stream.last)
            try:
                with incident.phase("starting"):
                    chain.make_room()
                    chain.renew()
                with incident.phase("restoring"):
                    incident.resumed, state = kept.restore(incident.step)
                    if state is not None:
                        chain.load(state, incident.resumed)
                return
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
        if self._stuck > SAME_STEP:
            why = f"; the run did not get past step {incident.step} in {SAME_STEP} attempts"
            raise _final(incident, error, why) from error


def _final(incident: Incident, error: ActorLostError, why: str = "") -> ActorLostError:
    """What ends the run."""
    losses = [f"{loss.name} was lost: {loss.cause}" for loss in incident.losses]
    return ActorLostError("; ".join(losses or [str(error)]) + why)
