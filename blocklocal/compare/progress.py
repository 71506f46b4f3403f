"""Progress of a study: which runs are finished, and how far those under way have come."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_SECONDS = 10.0  # between plain lines when the output is not a terminal


class StudyProgress:
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._done = 0
        self._steps: dict[str, tuple[int, int]] = {}
        self._printed = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._steps.clear()
            self._show()
            self._live.stop()

    def started(self, label: str) -> None:
        """A job has begun."""
        self._steps[label] = (0, 0)
        self._show()

    def stepped(self, label: str, step: int, steps: int) -> None:
        """A run has come to `step` of `steps`."""
        self._steps[label] = (step, steps)
        self._show()
        now = time.monotonic()
        if not self._live and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            ways = [f"{label} {_way(*way)}" for label, way in self._steps.items()]
            self._say(f"{self._head()}  {'; '.join(ways)}")

    def ended(self, label: str, said: str) -> None:
        """A job has ended; `said` is its result in words."""
        self._steps.pop(label, None)
        self._done += 1
        self._say(f"{self._head()}  {label}: {said}")
        self._show()

    def _head(self) -> str:
        return f"{self._done}/{self._total}"

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _show(self) -> None:
        if self._live:
            self._live.update(self._table())

    def _table(self) -> Table:
        table = Table(title=f"{self._head()} done")
        table.add_column("under way")
        table.add_column("step", justify="right")
        for label, way in self._steps.items():
            table.add_row(label, _way(*way))
        return table


def _way(step: int, steps: int) -> str:
    return f"{step}/{steps}" if steps else "starting"
