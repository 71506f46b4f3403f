"""Checkpoints in an object store, or wherever else pyarrow's file systems reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa
from pyarrow import fs

from orchestrator.files import Chunk, check_size


class ArrowStorage:
    """A prefix of an object store: a file appears when it is complete, and is then durable."""

    def __init__(self, files: fs.FileSystem, root: str, shown: str) -> None:
        self._files, self._root, self._shown = files, root.rstrip("/"), shown.rstrip("/")

    def at(self, name: str = "") -> str:
        return f"{self._shown}/{name}" if name else self._shown

    def write(self, name: str, chunks: Iterable[Chunk], size: int) -> None:
        with _as_os_errors(), self._open(f"{self._root}/{name}") as stream:
            for chunk in chunks:
                stream.write(chunk)

    def replace(self, name: str, data: bytes) -> None:
        self.write(name, [data], len(data))

    def read(self, name: str, most: int) -> bytes:
        path = f"{self._root}/{name}"
        with _as_os_errors(), self._files.open_input_file(path) as file:
            check_size(name, file.size(), most)
            return file.read()

    def entries(self) -> dict[str, frozenset[str]]:
        below = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        found: dict[str, set[str]] = {"": set()}
        with _as_os_errors():
            infos = self._files.get_file_info(below)
        for info in infos:
            directory, _, name = info.path.removeprefix(self._root).strip("/").rpartition("/")
            if info.type == fs.FileType.File:
                found.setdefault(directory, set()).add(name)
            elif not directory:
                found.setdefault(name, set())
        return {directory: frozenset(names) for directory, names in found.items()}

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), _as_os_errors():
            self._files.delete_file(f"{self._root}/{name}")

    def delete_directory(self, name: str) -> None:
        with suppress(OSError), _as_os_errors():
            self._files.delete_dir(f"{self._root}/{name}")

    def _open(self, path: str) -> pa.NativeFile:
        try:
            return self._files.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a file system that has directories
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            return self._files.open_output_stream(path, compression=None)


def locate(location: str) -> tuple[fs.FileSystem | None, str]:
    """The file system of a path or URI, None for this machine's, and the path in it.

    Raises:
        OSError: for none, or a bucket whose region cannot be found out.
    """
    with _as_os_errors():
        files, root = fs.FileSystem.from_uri(location)
    return (None if isinstance(files, fs.LocalFileSystem) else files), root


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Let pyarrow's own errors, most of which are OSError anyway, be told from mistakes in code."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
