"""Large files straight to the disk, past the page cache.

A checkpoint has to be on the disk before it counts, and nobody reads it soon. In the page cache it
would take the place of data that is read, and take pages that the kernel may first have to find:
that costs several times the processor time of the writing itself.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orchestrator.files import Chunk, write_all

LARGE = 2**20
"""Bytes from which on it pays."""
_BUFFER = 2**20  # bytes, which stay in a processor's cache
_BLOCK = 4096  # bytes, of which disks write multiples
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only


def write_large_file(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write a new file to the disk; where the file system knows no direct writes, as any other."""
    descriptor = _open(path)
    try:
        buffer = memoryview(mmap.mmap(-1, _BUFFER))  # starts at a page, as direct writes must
        size = filled = 0
        for chunk in chunks:
            rest = memoryview(chunk)
            size += len(rest)
            while rest:
                part = rest[: _BUFFER - filled]
                buffer[filled : filled + len(part)] = part
                filled, rest = filled + len(part), rest[len(part) :]
                if filled == _BUFFER:
                    _write(descriptor, buffer)
                    filled = 0
        if filled:
            _write(descriptor, buffer[: -(-filled // _BLOCK) * _BLOCK])
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        with suppress(FileNotFoundError):  # made all the same, by some kernels
            os.unlink(path)
        return os.open(path, flags, 0o666)


def _write(descriptor: int, blocks: memoryview) -> None:
    """Write whole blocks; directly, unless the file system refuses at the first of them."""
    try:
        write_all(descriptor, blocks)
    except OSError as error:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & _DIRECT:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
        write_all(descriptor, blocks)
