"""Hangs: actors that are there and do not go on, told by what others of their operations took."""

from __future__ import annotations

from actors.operations import Operation
from orchestrator.chain import Chain
from orchestrator.losses import ActorLostError

FIRST_SECONDS = 300.0  # for the first operation of a kind: compilers run, memory is touched


class HangWatch:
    """Asks the actors of a chain what they do when none has reported for long.

    Attributes:
        silence: seconds spent waiting since an actor reported last.

    Args:
        hang: least seconds without any report after which they are asked.
    """

    def __init__(self, chain: Chain, hang: float) -> None:
        self._chain, self._hang = chain, hang
        self._longest = 0.0
        self.silence = self._asked = 0.0
        self._waiting: dict[str, Operation | None] = {}

    def waited(self, seconds: float, came: bool) -> None:
        """Take note of a wait for reports.

        Raises:
            ActorLostError: when somebody hangs.
        """
        self.silence += seconds
        if came:
            self._longest = max(self._longest, self.silence)
            self.silence = self._asked = 0.0
        elif self.silence - self._asked > max(self._hang, 3 * self._longest):
            self._asked = self.silence
            self._look()

    def _look(self) -> None:
        """Ask all actors what they do; go on if one is at work and within its time.

        That all wait counts only if they wait for the same as when they were asked before.
        """
        told = self._chain.doing()
        for name, doing in told.items():
            if doing is None:
                raise ActorLostError(f"{name} does not answer")
            limit = FIRST_SECONDS if doing.longest is None else 10 * doing.longest
            if not doing.waiting and doing.seconds > max(self._hang, limit):
                long = f"{doing.seconds:.0f} s"
                raise ActorLostError(f"{name} has been at {doing.operation} for {long}")
        at = {name: doing.operation for name, doing in told.items() if doing and doing.waiting}
        # Who is at no operation has ended its chunk: the report is on its way.
        if len(at) == len(told) and None not in at.values() and at == self._waiting:
            raise ActorLostError("all actors wait for messages, and none is under way")
        self._waiting = at
