"""Faults of the disk at every call that touches it, for the tests of files that survive them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest import mock

from learning.errors import UserError

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "link", "unlink", "rmdir")


@contextmanager
def fault(at: int, mode: str) -> Iterator[Callable[[], int]]:
    """Let the `at`-th call that touches the disk fail; a failing write writes half.

    Args:
        mode: "once", or "dead": so do all later calls, thus the disk stays as a crash leaves it.
    """
    count = 0

    def wrap(name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at or (mode == "dead" and count > at):
                if name == "write" and count == at:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(errno.EIO, "injected")
            return real(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, wrap(name, getattr(os, name))))
        yield lambda: count


def with_faults(tmp_path: Path, prepare: Callable[[Path], object], act: Callable[[Path], object]):
    """Yield (directory, mode) for every way in which `act` can be interrupted, after it was."""
    for mode in ("once", "dead"):
        for at in range(1, 200):
            directory = tmp_path / f"{mode}{at}"
            directory.mkdir()
            prepare(directory)
            with fault(at, mode) as count, suppress(OSError, UserError):
                act(directory)
            if count() < at:
                assert at > 1, "nothing was injected"
                break
            yield directory, mode
        else:
            raise AssertionError("the faults do not end")
