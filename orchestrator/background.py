"""Work for which nobody waits, in a thread that gives way to all others."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_LOWEST = 19  # niceness; Ray runs actors at 15, so that this takes the time that they leave


class Background:
    """One piece of work at a time."""

    def __init__(self) -> None:
        self._work: Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether `finish` would not wait."""
        return self._work is None or self._work.done()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin work; what was begun before is finished."""
        assert self._work is None
        executor = ThreadPoolExecutor(1, "background", _give_way)
        self._work = executor.submit(work)
        executor.shutdown(wait=False)  # the thread ends with its one task

    def finish(self) -> None:
        """Wait for what was begun last, if anything; raises what it raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere niceness is that of the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
