"""Whether what is to be built fits this machine, asked before its memory is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from learning.errors import UserError, one_line

PART = 2
"""What is built may take one part in so many of the memory: training needs as much again."""
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
BUILD_ERRORS = (
    MemoryError,
    RecursionError,
    RuntimeError,  # torch's: too large for its types, or no memory
    OverflowError,
    ValueError,
    TypeError,
    ZeroDivisionError,
)


@cache
def machine_bytes() -> int:
    """The memory of this machine, or of the container that this process is in."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            most = min(most, int(Path(path).read_text()))
    return most


def check_fits(count: int, what: str, fix: str) -> None:
    """Refuse what takes more bytes than there may be at once.

    Args:
        count: bytes, at least.
        what: takes them, for the message.
        fix: what to do about it.

    Raises:
        UserError: with the number, the limit and the fix.
    """
    most = machine_bytes()
    if count > most // PART:
        raise UserError(
            f"{what} would take {_size(count)} or more, and this machine has {_size(most)}, half "
            f"of them for it: {fix}"
        )


@contextmanager
def building(what: str, fix: str) -> Iterator[None]:
    """Guard the making of modules: what is too large, too deep or impossible is one sentence.

    The weights are counted as modules register them, which is before they are filled: until then a
    large tensor takes no memory.

    Args:
        what: is built, for the message.
        fix: what to do when it cannot be.

    Raises:
        UserError: instead of what the inside raises.
    """
    total = 0

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal total
        if isinstance(tensor, Tensor):
            total += tensor.nbytes
            check_fits(total, what, fix)

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    except UserError:
        raise
    except BUILD_ERRORS as error:
        said = one_line(str(error), 120) or type(error).__name__
        raise UserError(f"{what} cannot be built ({said}): {fix}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _size(count: int) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:,.1f} {unit}"
    return f"{count:,} bytes"
