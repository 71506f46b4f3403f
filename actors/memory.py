"""The process's memory allocator, told that the same sizes come again in every step."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
_KEPT = 2**30  # bytes of free memory that are not given back


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step, for the whole process.

    By default it gives large blocks back to the kernel, which clears and maps every page of them
    anew: gradients of 16 MB cost thousands of page faults in each step. The process's size then
    stays near its peak (at most 1 GiB above what it uses).

    Returns:
        Whether the C library is glibc and took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
        _TRIM_THRESHOLD: _KEPT,
        _TOP_PAD: 64 * 2**20,
        _ARENA_MAX: 1,  # other threads' arenas come in pieces of 64 MB, given back when empty
    }
    taken = [mallopt(name, value) for name, value in settings.items()]
    return taken == [1] * len(settings)
