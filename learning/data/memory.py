"""The memory that data may take: what a file claims is checked before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from learning.errors import UserError

_MEMORY = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


def check_memory(what: str, needed: int, fix: str) -> None:
    """Check that `needed` bytes may be asked for: what a file claims is not always true.

    Raises:
        UserError: when that is more than there is.
    """
    free = available_memory()
    if needed > free:
        raise UserError(
            f"{what} needs {amount(needed)} of memory, but {amount(free)} are free: {fix}"
        )


def amount(size: int) -> str:
    """Write a number of bytes, however large."""
    if size < 10**7:
        return f"{size:,} bytes"
    return f"{size / 1e9:,.2f} GB" if size < 10**18 else "over a billion GB"


def available_memory() -> int:
    """Bytes that this process may still take, by the kernel's estimate and its container's."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: all that the machine has
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _LIMIT.read_text().strip()
    except OSError:
        return free
    return min(free, int(limit)) if limit.isdigit() else free
