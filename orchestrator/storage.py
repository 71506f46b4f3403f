"""Where checkpoints lie: a directory of this machine, or an object store through pyarrow.

Both keep what `Checkpoints` builds on, which neither renames nor locks: a file of a fresh directory
is written once, and the file that completes the directory comes last, whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from learning.bounds import Address, Kept, Seconds, Steps
from learning.errors import UserError, one_line
from learning.settings import Settings
from orchestrator.direct_files import LARGE, write_large_file
from orchestrator.files import Chunk, check_size, child, replace_file, sync_directory, write_file
from orchestrator.record_files import open_record


class CheckpointSettings(Settings):
    """Where a run's checkpoints lie, when they are taken, and how many stay."""

    storage: Address | None = Field(
        default=None, description="a path or URI; null: the run directory's checkpoints/"
    )
    every: Steps | None = Field(
        default=None, description="steps between checkpoints; null: with evaluations only"
    )
    every_seconds: Seconds | None = Field(
        default=None, description="seconds between checkpoints as well"
    )
    keep: Kept = Field(default=2, description="how many of the newest stay, besides the best")

    @field_validator("storage")
    @classmethod
    def _no_secrets(cls, storage: Address | None) -> str | None:
        if storage is not None and urlsplit(storage).password is not None:
            raise ValueError(
                "checkpoints.storage holds a secret, which the run's records would show: leave it "
                "out and give it as the store's client finds it, such as AWS_SECRET_ACCESS_KEY"
            )
        return storage


class Storage(Protocol):
    """Files by name, `file` or `directory/file`; every method raises OSError when it cannot."""

    def at(self, name: str = "") -> str:
        """Where a file or directory is, for messages."""
        ...

    def write(self, name: str, chunks: Iterable[Chunk], size: int) -> None:
        """Write a new file; it is durable when the next `replace` in its directory returns.

        Args:
            size: bytes of all chunks, which are iterated over once.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file so that at any moment the old or the new one is there whole."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """Read a file; one of more bytes than `most` is not read, and EFBIG."""
        ...

    def entries(self) -> dict[str, frozenset[str]]:
        """The files of every directory by its name, and of the storage itself as ``""``."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, durably; none is fine."""
        ...

    def delete_directory(self, name: str) -> None:
        """Delete a directory that counts for nothing any more; what cannot be deleted stays.

        A file that another process still reads may refuse on a network file system.
        """
        ...


class LocalStorage:
    """A directory of a file system with renames: what is said to be durable survives a crash."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def at(self, name: str = "") -> str:
        return str(self._root / name)

    def write(self, name: str, chunks: Iterable[Chunk], size: int) -> None:
        path = self._path(name)
        self._make(path.parent)
        (write_large_file if size >= LARGE else write_file)(path, chunks)

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._make(path.parent)
        sync_directory(path.parent)  # this file may name those that were written before it
        replace_file(path, [data])

    def read(self, name: str, most: int) -> bytes:
        with os.fdopen(open_record(self._root / name, os.O_RDONLY), "rb") as file:
            check_size(name, os.fstat(file.fileno()).st_size, most)
            return file.read()  # not mapped: bytes verified are bytes parsed

    def entries(self) -> dict[str, frozenset[str]]:
        if not self._root.exists():
            return {}
        found, files = {}, set()
        with os.scandir(self._root) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    files.add(entry.name)
                    continue
                with suppress(FileNotFoundError):  # its writer has just deleted it
                    found[entry.name] = frozenset(os.listdir(entry.path))
        return {**found, "": frozenset(files)}

    def delete(self, name: str) -> None:
        path = self._path(name)
        if os.path.lexists(path):
            os.unlink(path)
            sync_directory(path.parent)

    def delete_directory(self, name: str) -> None:
        shutil.rmtree(self._root / name, ignore_errors=True)

    def _path(self, name: str) -> Path:
        """Where a file is that is to be changed; its directory is no link to another."""
        path = self._root / name
        if path.parent != self._root and path.parent.is_symlink():
            raise OSError(errno.ELOOP, "its directory is a symbolic link", str(path))
        return path

    def _make(self, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make(directory.parent)
        with suppress(FileExistsError):  # of another run, just now
            os.mkdir(directory)
        sync_directory(directory.parent)


def open_storage(location: str, name: str) -> Storage:
    """The directory `name` of a storage.

    Args:
        location: an absolute path or a URI, `CheckpointSettings.storage`.

    Raises:
        UserError: for a location that is none, or that cannot be reached.
    """
    fix = (
        "give an absolute path or a URI that can be reached, such as s3://bucket/prefix?region=..."
    )
    from orchestrator.arrow_storage import ArrowStorage, locate  # pyarrow: most runs need none

    child(Path(), name, "run.name")
    with refusing(f"open checkpoints.storage = {location}", fix):
        files, root = locate(location)
    if not root.strip("/"):
        raise UserError(f"checkpoints.storage = {location} names no bucket or directory: {fix}")
    if files is None:
        return LocalStorage(Path(root) / name)
    shown = location.partition("?")[0].rstrip("/")
    return ArrowStorage(files, f"{root.rstrip('/')}/{name}", f"{shown}/{name}")


def shared_storage(config: Mapping[str, Any]) -> Storage | None:
    """The storage that a run's settings name, as JSON knows them; None for the run directory.

    Raises:
        UserError: when they name none, or it cannot be reached.
    """
    run = config.get("run")
    try:
        location = CheckpointSettings.model_validate(config.get("checkpoints", {})).storage
        if location is None:
            return None
        if not isinstance(run, Mapping) or not isinstance(run.get("name"), str):
            raise ValueError("the run has no name")
    except ValueError as error:  # pydantic's is one
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"checkpoints.storage of the run cannot be used ({one_line(str(why), 240)}): restore "
            "its config.yaml from a copy"
        ) from error
    return open_storage(location, run["name"])


def absolute(location: str | None) -> str | None:
    """A location that is the same from every directory: a URI stays, a path becomes absolute."""
    if location is None or urlsplit(location).scheme:
        return location
    return os.path.abspath(os.path.expanduser(location))


def reason(error: OSError) -> str:
    """Why a storage failed, on one line."""
    return " ".join(str(error.strerror or error).split())


class StorageError(UserError):
    """A storage failed: it is full, say, or out of reach."""


@contextmanager
def refusing(what: str, fix: str) -> Iterator[None]:
    """Say in one sentence that a storage failed.

    Raises:
        StorageError: `cannot <what> (<reason>): <fix>`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {what} ({reason(error)}): {fix}") from error
