"""Incidents: what was lost, what was done about it, and what it has cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from actors.operations import Span
from orchestrator.losses import Loss


@dataclass
class Incident:
    """One recovery, of one or several actors.

    Attributes:
        number: from 1, in the order of the run.
        at: Unix time at which the driver noticed.
        losses: who was lost, where and why; empty where only a connection ended.
        last: the last operation that each lost actor had reported, by its name.
        step: after the last that all blocks had finished.
        resumed: the step at which training went on.
        restored: the step to which those that were lost went back, where the others did not.
        kept: the last step that each of the others had finished, where they kept their progress.
        ended: whether the run did not go on.
        instead: what was done, where nobody had to go back.
        lanes: with how many it went on.
        seconds: by phase: `noticing` (from the last report of any actor), `ending` (of what the
            others were at), `starting` (new actors), `restoring`, `replaying` (to the first new
            step).
    """

    number: int
    at: float
    step: int
    losses: list[Loss] = field(default_factory=list)
    last: dict[str, Span] = field(default_factory=dict)
    resumed: int = 0
    restored: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    instead: str = ""
    lanes: int = 1
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, losses: Sequence[Loss], last: Mapping[str, Span]) -> None:
        """Add more that was lost."""
        self.losses += losses
        self.last |= {loss.name: last[loss.name] for loss in losses if loss.name in last}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the context to a phase."""
        began = monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + monotonic() - began

    @property
    def steps_lost(self) -> int:
        """How many finished steps had to be done again, or are missing in those that were lost."""
        if self.ended or self.instead:
            return 0
        return self.step - (self.restored if self.kept else self.resumed)

    @property
    def _action(self) -> str:
        if self.ended or self.instead:
            return "ended" if self.ended else self.instead
        return "replaced, others kept" if self.kept else "replaced and replayed"

    def sentence(self) -> str:
        """For people."""
        lost = "; ".join(f"{loss.name}{_where(loss)}: {loss.cause}" for loss in self.losses)
        spent = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        done = (
            f"all blocks went back to step {self.resumed}, {self.steps_lost} steps were done again"
        )
        if self.instead:
            done = self.instead
        elif self.kept:
            done = f"what was lost went back to step {self.restored}, the others kept their "
            done += f"progress, and all went on at step {self.resumed}"
        return (
            f"incident {self.number} after step {self.step}: lost {lost or 'a connection'}; "
            f"{'the run ended' if self.ended else done}" + (f"; seconds: {spent}" if spent else "")
        )

    def metrics(self) -> dict[str, float]:
        """What can be plotted."""
        return {
            "number": float(self.number),
            "steps_lost": float(self.steps_lost),
            "seconds": sum(self.seconds.values()),
        }

    def record(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "number": self.number,
            "at": self.at,
            "step": self.step,
            "action": self._action,
            "resumed": self.resumed,
            "restored": self.restored if self.kept else self.resumed,
            "kept": self.kept,
            "steps_lost": self.steps_lost,
            "lanes": self.lanes,
            "losses": [vars(loss) for loss in self.losses],
            "last": {name: span._asdict() for name, span in self.last.items()},
            "seconds": self.seconds,
        }


def _where(loss: Loss) -> str:
    return f" (process {loss.process}, node {loss.node[:8]})" if loss.process else ""
