"""Signals that ask this process to end: SIGTERM, SIGHUP and Ctrl-C.

The first lets training come to a step boundary and keep its state, the second ends it at once, by
`KeyboardInterrupt`. No boundary within `engine.patience` seconds counts as the second signal. Who
has not ended `CLEANING_SECONDS` after the second, or at the third, leaves without cleaning up, but
for Ctrl-C: somebody is there to ask.

Imports nothing that takes long: the command line needs it before anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.stopping import Stopping

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
CLEANING_SECONDS = 10.0
_current: Stopping | None = None


@contextmanager
def handled() -> Iterator[Stopping]:
    """Take these signals for requests to stop, and give their handlers back at the end.

    Signals that are ignored stay so, as below `nohup`. Only the main thread of a process that is
    nobody's worker has signals; elsewhere nobody ever asks.
    """
    global _current
    if threading.current_thread() is not threading.main_thread() or _is_worker():
        yield Stopping()
        return
    if _current is not None:
        yield _current
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None is a handler that is not Python's, and could not be given back.
    before = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
    _current = stopping = Stopping()
    timers: list[threading.Timer] = []
    ending: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping.is_patient and not stopping.asked:
            stopping.ask(number)  # before the timer: it may send the next signal at once
            if number == signal.SIGINT and stopping.notice:
                os.write(2, f"blocklocal: {stopping.notice}; once more: at once\n".encode())
            timers.append(_timer(stopping.patience, lambda: _too_late(stopping, number)))
            return
        if number != signal.SIGINT:
            if ending:
                os._exit(stopping.code)
            ending.append(_timer(CLEANING_SECONDS, lambda: os._exit(stopping.code)))
        stopping.ask(number)

    try:
        for number in before:
            signal.signal(number, handle)
        yield stopping
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers + ending:
            timer.cancel()


def _is_worker() -> bool:
    """Whether Ray started this process; Ray ends it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _timer(seconds: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer


def _too_late(stopping: Stopping, number: int) -> None:
    """No boundary came in time; where the state is kept already, nobody waits for one."""
    if stopping.is_patient:
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, number)  # the main thread may wait in a call to the system
