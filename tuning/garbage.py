"""Sparing training the long pauses of Python's garbage collection."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_counting = threading.Lock()
_sparing = 0


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep all objects of the moment out of garbage collection, until the last who asked is done.

    Who sends metrics makes many short-lived objects, and so many collections. A full one looks at
    every module of PyTorch, Ray and MLflow, and stops all threads for a third of a second. Objects
    are freed as before when nobody refers to them; only circles among them wait for the end. Where
    objects are frozen already (`gc.freeze`), whoever did it knows better, and all is left alone.
    """
    global _sparing
    with _counting:
        if ours := _sparing > 0 or not gc.get_freeze_count():
            if not _sparing:
                gc.freeze()
            _sparing += 1
    try:
        yield
    finally:
        if ours:
            with _counting:
                _sparing -= 1
                if not _sparing:
                    gc.unfreeze()
