"""Files of data and of the cache: which are read, how they are written, and their checksums."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from learning.data.words import reason
from learning.errors import UserError, named


def existing_file(path: Path, kind: str) -> Path:
    """Expand `~` in `path`, which must be a regular file.

    Args:
        kind: what it should be, with its article.

    Raises:
        UserError: when there is no such file or no such path can be.
    """
    try:
        found = path.expanduser()
        if found.is_file():
            return found
        why = ""
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home unknown, a NUL
        why = f" ({getattr(error, 'strerror', None) or reason(error)})"
    raise UserError(f"there is no file {named(path)}{why}: give the path of {kind}")


def checksum_of(source: Path) -> str:
    """Compute the checksum of all bytes of a file.

    Raises:
        UserError: when the file cannot be read.
    """
    try:
        with source.open("rb") as file:
            return checksum(file)
    except OSError as error:
        raise UserError(
            f"cannot read {named(source)} ({error.strerror or reason(error)}): give the path of a "
            "file that can be read"
        ) from error


def opened(path: Path) -> IO[bytes]:
    """Open a regular file for reading, and neither what a link points to nor a pipe."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("it is not a regular file")


def mapped(file: IO[bytes]) -> np.ndarray:
    """Map an open `.npy` file, read-only."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of .npy was not written here")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("Python objects were not written here")
    order = "F" if fortran else "C"
    return np.memmap(file, dtype, "r", file.tell(), shape, order)


def checksum(file: IO[bytes]) -> str:
    """XXH3 of an open file, at the speed of memory."""
    file.seek(0)
    value = xxhash.xxh3_128()
    while chunk := file.read(1 << 20):
        value.update(chunk)
    return value.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` if the body succeeds.

    Raises:
        UserError: when the folder cannot be made or written (no permission, disk full).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files no other user may read: a team may share the folder.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the cache of decoded images in {named(path.parent)} "
            f"({error.strerror or error}): set data.cache or $BLOCKLOCAL_CACHE to a folder that "
            "is writable and has room"
        ) from error
