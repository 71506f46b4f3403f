"""Recovery: what is done about lost actors, and how often.

Under `exact` all blocks go back to the last checkpoint and do again what came after. Batches and
all random draws are functions of seed and step, so the bits at the end are those of a run that lost
nothing. Under `local` only what was lost goes back; the others keep what they have learnt.
"""

from __future__ import annotations

import time
from collections import deque

from actors.operations import Kind, Operation
from orchestrator.chain import Chain
from orchestrator.elasticity import Elasticity
from orchestrator.events import Kept, State
from orchestrator.incidents import Incident
from orchestrator.losses import ActorLostError, NoRoomError
from orchestrator.settings import RecoverySettings
from orchestrator.states import finished, load, load_learnt
from orchestrator.stream import Stream
from orchestrator.turns import Turn

HOUR = 3600.0
SAME_STEP = 3  # losses without a step of progress; one more ends the run


class Recovery:
    """Recovers a chain from losses, within a budget."""

    def __init__(self, settings: RecoverySettings, chain: Chain, elasticity: Elasticity) -> None:
        self.settings, self._chain, self._elasticity = settings, chain, elasticity
        self._times: deque[float] = deque()
        self._step, self._stuck = -1, 0  # at which step losses come again and again

    def recover(
        self,
        error: ActorLostError,
        stream: Stream,
        incident: Incident,
        kept: Kept | None,
        bound: int,
    ) -> Turn | None:
        """Find out who is lost, start them again, and take everyone back.

        A lane that has lost an actor is given up where enough others are left; it may come again.

        Args:
            incident: with the step after the last that all blocks had finished; all else but the
                time to do steps again is put into it.
            kept: gives the state that was kept last.
            bound: the next step after which something is told: training goes on there or before.

        Returns:
            What actors do first when training goes on.

        Raises:
            ActorLostError: when the run cannot go on.
            UserError: when what was kept cannot be read.
        """
        chain = self._chain
        incident.seconds["noticing"] = stream.watch.silence
        self._elasticity.cancel()
        self._stuck = self._stuck + 1 if self._step == incident.step else 1
        self._step = incident.step
        failed = False
        while True:
            with incident.phase("ending"):
                losses = chain.lost()
                incident.add(losses, stream.last)
                if kept is None or self.settings.mode == "off":
                    raise _final(incident, error)
                self._spend(incident, error)
                incident.add(stream.halt(), stream.last)
                chain.shrink(self._elasticity.settings.min)
                if failed and not losses:
                    self._elasticity.give_up_newest(str(error))
                incident.lanes = len(chain.lanes)
            try:
                local = self.settings.mode == "local"
                with incident.phase("starting"):
                    if local:
                        lost = {loss.name for loss in incident.losses}
                        done = finished(chain).items()
                        # Who has finished nothing may be a successor that has no state yet.
                        incident.kept = {n: step for n, step in done if n not in lost and step >= 0}
                    chain.make_room()
                    chain.renew(keep=local)
                with incident.phase("restoring"):
                    incident.restored, state = kept.restore(incident.step)
                    incident.resumed = incident.restored
                    if incident.kept:
                        return self._go_on(incident, state, bound)
                    if state is not None:
                        load(chain, state, incident.resumed)
                return None
            except NoRoomError:
                raise
            except ActorLostError as another:
                error, failed = another, True

    def _go_on(self, incident: Incident, state: State | None, bound: int) -> Turn:
        """Have those that were lost catch up with nobody: all go on where the furthest is.

        Tables for the next steps were sent to blocks that are built anew; feedback modules make
        them again, with the weights that they have.
        """
        chain = self._chain
        lost = [a.name for a in chain.actors if a.learns and a.name not in incident.kept]
        step = max(incident.step, min(bound, max(incident.kept.values()) + 1))
        incident.resumed = step
        if not lost:
            incident.restored = incident.step
        elif state is not None:
            load_learnt(chain, lost, state, incident.restored - 1)
        turn = Turn(step, "")
        delay = chain.program.feedback_delay
        for actor in chain.actors:
            if actor.learner.startswith("feedback"):
                tables = range(max(0, step - delay), step)
                turn.first[actor] = [Operation(Kind.TABLE, earlier) for earlier in tables]
        return turn

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
