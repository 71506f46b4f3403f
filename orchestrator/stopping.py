"""Ending a run in order: whoever wants it says so, and whoever works looks at step boundaries."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 15.0  # Slurm and Kubernetes give 30 s in all


class Stopping:
    """Whether what this process does is to end.

    A request raises `KeyboardInterrupt` wherever the process is, also inside a call to Ray, which
    lets nothing else through. Only where work is patient it is kept until somebody looks at it,
    and the next request raises.

    Attributes:
        number: of the first signal that asked; 0 while nobody has.
        patience: seconds that patient work may take to come to its next boundary.
        notice: what such work does at a request, in words.
        left: where it ended and how to go on, in words that follow what happened.
    """

    def __init__(self) -> None:
        self.number = 0
        self.patience = PATIENCE
        self.notice = self.left = ""
        self._patient = False

    @property
    def asked(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.number != 0

    @property
    def is_patient(self) -> bool:
        """Whether a first request waits for a boundary."""
        return self._patient

    @property
    def name(self) -> str:
        """What the first signal is called."""
        return signal.Signals(self.number).name

    @property
    def code(self) -> int:
        """The exit code that shells know for the end by this signal."""
        return 128 + self.number

    def sentence(self) -> str:
        """What happened, and how to go on, for people."""
        by_hand = self.number in (0, signal.SIGINT)
        said = "interrupted" if by_hand else f"stopped by {self.name}"
        return said + self.left

    def ask(self, number: int) -> None:
        """Ask to stop; for the main thread.

        Args:
            number: of the signal that asks.

        Raises:
            KeyboardInterrupt: where no boundary is waited for, and from the second time on.
        """
        again, self.number = self.asked, self.number or number
        if again or not self._patient:
            self._patient = False
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was kept.

        Raises:
            KeyboardInterrupt: when somebody has asked to stop.
        """
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def patiently(self, patient: bool = True) -> Iterator[None]:
        """Keep a first request until somebody looks at it; or, inside of that, not.

        Raises:
            KeyboardInterrupt: with `patient` False, when somebody has asked already.
        """
        if not patient:
            self.check()
        before, self._patient = self._patient, patient
        try:
            if not patient:
                self.check()  # it may have come just before
            yield
        finally:
            self._patient = before and not self.asked
