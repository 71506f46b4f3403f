"""What is done at the end of something, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def afterwards(act: Callable[[BaseException | None], None]) -> Iterator[None]:
    """Call `act` at the end with what was raised, or None; its own failure never hides that."""
    try:
        yield
    except BaseException as error:
        try:
            act(error)
        except BaseException as second:
            note = f"and cleaning up failed: {type(second).__name__}: {second}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        raise
    act(None)
