"""Files that survive a crash: atomic writes, JSON that notices damage, safe names.

All writing goes through `os`, not through buffered streams: once `write_all` has returned, a
killed process loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from learning.errors import UserError

FORMAT = 1  # of sealed files whose writer names no other; a reader refuses what it does not know
ANOTHER_FILE = "delete it or choose another file to write to"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


Chunk = bytes | memoryview
"""A part of a file, wherever it lies in memory."""


class DamageError(UserError):
    """A file is not what was written: cut off, altered or gone. A copy or an older one may do."""


def child(directory: Path, name: str, what: str = "file") -> Path:
    """The path of `name` directly in `directory`.

    Args:
        what: what is named, for the error message.

    Raises:
        UserError: for a name that could lead elsewhere, is hidden or is not portable.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{what} {name!r} cannot name a file: use 1 to 128 letters, digits, '.', '_' and '-', "
            "the first a letter or a digit"
        )
    return directory / name


def check_size(name: str, size: int, most: int) -> None:
    """Raise the OSError of a file that has more bytes than it may, before they are read."""
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", name)


def write_all(descriptor: int, data: Chunk) -> None:
    """Write all of `data`; `os.write` alone may stop early."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_file(path: Path, chunks: Iterable[Chunk], *, replace: bool = False) -> None:
    """Write a new file to the disk; never through a link.

    Args:
        replace: whether there may be one, as for temporary files only: it goes.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileExistsError:
        if not replace:
            raise
        os.unlink(path)  # and not what it may be a link to
        descriptor = os.open(path, flags, 0o666)
    try:
        for chunk in chunks:
            write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename is not before this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary(path: Path) -> Path:
    """Where `replace_file` writes before it replaces `path`."""
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write a file so that a crash at any point leaves the old or the whole new one.

    Only one process may replace a file at a time.
    """
    _replace_by(temporary(path), path, chunks)


def replace_shared_file(path: Path, chunks: Iterable[Chunk]) -> None:
    """Replace a file that several processes may replace at a time: the last one wins."""
    _replace_by(path.with_name(f".{path.name}.new-{uuid4().hex}"), path, chunks)


def _replace_by(new: Path, path: Path, chunks: Iterable[Chunk]) -> None:
    try:
        write_file(new, chunks, replace=True)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    sync_directory(path.parent)


def create_file(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write a new file, whole or not at all.

    Raises:
        UserError: when the file exists or cannot be written.
    """
    new = temporary(path)
    try:
        write_file(new, chunks, replace=True)
        try:
            os.link(new, path)  # unlike a rename, never overwrites
        except FileExistsError:
            raise UserError(f"{path} exists: {ANOTHER_FILE}") from None
        except OSError:  # a file system without hard links
            os.rename(new, path)
        sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another file") from error
    finally:
        with suppress(OSError):
            new.unlink()


def sealed(data: Mapping[str, Any], version: int = FORMAT) -> bytes:
    """Encode `data` as JSON with the format version and a checksum, for `unsealed`.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for a value that JSON does not know.
    """
    # Through JSON once, because the reader's checksum is of what JSON keeps: text keys, lists.
    plain = json.loads(json.dumps({"format": version, **data}, allow_nan=False))
    return (json.dumps({**plain, "sha256": _checksum(plain)}, indent=2) + "\n").encode()


def unsealed(
    data: bytes, where: str, fix: str, versions: Sequence[int] = (FORMAT,)
) -> dict[str, Any]:
    """Decode what `sealed` encoded.

    Args:
        where: the file, for the error message.
        fix: what the user can do about damage.
        versions: of the format that the caller knows.

    Raises:
        DamageError: for bytes that are damaged or foreign.
        UserError: for another format version.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where} is damaged ({error}): {fix}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise DamageError(f"{where} is not a file of blocklocal (no format version): {fix}")
    # Before the checksum, which another version may compute in another way.
    if content["format"] not in versions:
        known = " and ".join(str(version) for version in versions)
        raise UserError(
            f"{where} has format version {content['format']!r}, this blocklocal reads {known}: "
            f"use the version of blocklocal that wrote it, or {fix}"
        )
    checksum = content.pop("sha256", None)
    try:
        expected = _checksum(content)
    except RecursionError as error:  # deeper than the reader minded
        raise DamageError(f"{where} is damaged (it is nested too deeply): {fix}") from error
    if checksum != expected:
        raise DamageError(f"{where} is damaged (its content does not have its checksum): {fix}")
    del content["format"]
    return content


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def remove_leftovers(path: Path) -> None:
    """Remove what crashed attempts to create `path` left: those of processes that are gone."""
    pattern = re.compile(re.escape(f".{path.name}.new-") + r"(\d{1,9})")
    for name in os.listdir(path.parent):
        match = pattern.fullmatch(name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(path.parent / name, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else alive, and another user's
    return True
