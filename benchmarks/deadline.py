"""An end for whatever might wait for ever."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_SECONDS = 60.0  # for cleaning up, after the deadline


@contextmanager
def deadline(seconds: float, doing: Callable[[], str]) -> Iterator[None]:
    """Interrupt what the main thread does in this context when it takes too long.

    Ray's waits end on SIGINT only, so that is what is sent; all threads' stacks are printed before.
    Where the interrupt does not end the context either, the process ends.

    Args:
        doing: what was being done and how far it was, for the error.

    Raises:
        TimeoutError: when the deadline has passed.
    """
    passed = threading.Event()

    def interrupt() -> None:
        passed.set()
        print(f"{doing()}: not done within {seconds:.0f} s", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        os.kill(os.getpid(), signal.SIGINT)

    def end() -> None:
        late = f"{doing()}: cleaning up took more than {GRACE_SECONDS:g} s as well"
        print(late, file=sys.stderr, flush=True)
        os._exit(1)

    # A shell may have started this process with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timers = [
        threading.Timer(seconds, interrupt),
        threading.Timer(seconds + GRACE_SECONDS, end),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if passed.is_set():
            raise TimeoutError(f"{doing()}: not done within {seconds:.0f} s") from error
        raise
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, before)
