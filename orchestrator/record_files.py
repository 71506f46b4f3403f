"""The one door to the files of a run, a sweep or a study.

Whoever makes such a directory may have it from someone else, so a name in it may be a link to any
file of the user's: what is opened here is a file of its own, never what a link leads to. Whatever
the system refuses (a full disk, a directory that is gone) becomes one sentence, and so does
whatever is read that was never written here: too large, too deep, no UTF-8, no JSON.

Bytes and durability are the matter of orchestrator/files.py, which raises OSError.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from learning.errors import UserError, named, one_line
from learning.yaml_files import MOST_RECORDED, yaml_of
from orchestrator.files import Chunk, replace_file, replace_shared_file, unsealed

T = TypeVar("T")

MOST_BYTES = 64 * 2**20
"""Of a file that is read at once; those of lines may be longer."""
COPY = "restore it from a copy"
_LINK = "it is a symbolic link"
_FIXES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, for the quota is used up",
    errno.EFBIG: "raise the limit on the size of files",
    errno.ENOENT: "bring its directory back",
    errno.ENOTDIR: "bring its directory back",
    errno.ELOOP: "put a file in its place",
    errno.EINVAL: "put a file in its place",
    errno.EISDIR: "put a file in its place",
    errno.ENXIO: "put a file in its place",
    errno.EMFILE: "raise the limit on open files",
}


class RecordError(UserError):
    """A record cannot be written: the disk is full, say, or its directory is gone."""


def open_record(path: Path, flags: int) -> int:
    """Open a file that is one, not a link, a directory or a pipe; returns the descriptor.

    Raises:
        OSError: when it is none, or the system refuses.
    """
    try:
        # Without waiting: a pipe would have to have someone at its other end.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _LINK, str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def open_growing(path: Path) -> FileIO:
    """Open a file to read and to append to; makes it if missing.

    Raises:
        OSError: as `open_record`.
    """
    return FileIO(open_record(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+")


@contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Say in one sentence that a record cannot be written.

    Raises:
        RecordError: `cannot <what> <path> (<reason>): <fix>`.
    """
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "make it writable")
        raise RecordError(f"cannot {what} {named(path)} ({_reason(error)}): {fix}") from error


@contextmanager
def reading(path: Path, fix: str = COPY) -> Iterator[BinaryIO]:
    """Open a record to read it.

    Raises:
        UserError: when that fails, also later.
    """
    try:
        with os.fdopen(open_record(path, os.O_RDONLY), "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {named(path)} ({_reason(error)}): {fix}") from error


def read_record(path: Path, fix: str = COPY, most: int = MOST_BYTES) -> bytes:
    """Read a record as it is.

    Args:
        fix: what the user can do about a file that is missing or too large.

    Raises:
        UserError: for a file that cannot be read or is none.
    """
    with reading(path, fix) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{named(path)} has more than {most} bytes, the most of such a file: {fix}")
    return data


def read_json(path: Path, check: Callable[[Any], T], fix: str = COPY) -> T:
    """Read a record of JSON.

    Args:
        check: takes what was read and returns what is wanted; raises LookupError, TypeError or
            ValueError for anything else.

    Raises:
        UserError: for a file that cannot be read, or holds something else.
    """
    data = read_record(path, fix)
    try:
        return check(json.loads(data))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{named(path)} is damaged ({what_is_wrong(error)}): {fix}") from error


def read_sealed(path: Path, fix: str = COPY) -> dict[str, Any]:
    """Read what `orchestrator.files.sealed` encoded.

    Args:
        fix: what the user can do about a file that is missing or damaged.

    Raises:
        UserError: for a file that is missing, damaged, of another format version or foreign.
    """
    return unsealed(read_record(path, fix), named(path), fix)


def read_yaml_record(path: Path) -> dict[str, Any]:
    """Read settings that this program wrote.

    Raises:
        UserError: for a file that cannot be read, or holds something else.
    """
    try:
        tree = yaml_of(read_record(path, COPY, MOST_RECORDED), path, MOST_RECORDED)
    except UserError as error:
        raise UserError(f"{error}, or {COPY}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{named(path)} holds no settings: {COPY}")
    return tree


def read_text(path: Path, fix: str = COPY) -> str:
    """Read a record of text.

    Raises:
        UserError: for a file that cannot be read, or is no text.
    """
    try:
        return read_record(path, fix).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{named(path)} is damaged ({what_is_wrong(error)}): {fix}") from error


def what_is_wrong(error: Exception) -> str:
    """The reason why content is refused, short."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return one_line(f"it has no {error.args[0]!r}", 120)
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return one_line(str(error), 120)


def replace_record(path: Path, chunks: Iterable[Chunk], *, shared: bool = False) -> None:
    """Replace a record, or make it; at any moment the old or the new one is there whole.

    Args:
        shared: whether several processes may replace it at a time.

    Raises:
        RecordError: when it cannot be written; the old one is kept.
    """
    with writing(path):
        (replace_shared_file if shared else replace_file)(path, chunks)


def check_no_link(directory: Path, instead: str) -> None:
    """Make sure that a directory below that of a run or a sweep is there itself, if at all.

    Raises:
        UserError: when it is a link to another.
    """
    if os.path.islink(directory):
        raise UserError(f"{named(directory)} is a symbolic link: {instead}")


def _reason(error: Exception) -> str:
    return one_line(str(getattr(error, "strerror", None) or error), 120)
