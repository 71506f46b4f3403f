"""What a program is doing that takes long: said by whoever does it, shown by whoever is asked to.

The command line shows it on standard error. In Python: a handler of `logging`, of the level INFO,
on the logger `blocklocal.doing`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("blocklocal.doing")


def doing(what: str) -> None:
    """Say what takes long from here on, such as `decoding the images of train.parquet`."""
    LOGGER.info("%s", what)


@contextmanager
def shown() -> Iterator[None]:
    """Show it, a line each, on standard error (`... decoding`); only once where this is nested."""
    if LOGGER.handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("... %(message)s"))
    level, propagates = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagates
