"""Files of JSON lines: a run's metrics and spans, which a killed process may leave torn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from learning.errors import UserError, named
from orchestrator.files import write_all
from orchestrator.record_files import open_growing, reading, what_is_wrong, writing

CHUNK = 1 << 20  # bytes of lines that are read or written at once
MOST_LINE = 16 * 2**20
"""Bytes of a line: a record of some ten thousand learners."""


class Lines:
    """A file of lines to append to; open from the first append on.

    What was appended outlives the process. An unfinished last line, onto which the next would be
    glued, is removed: a killed process leaves one, and so does a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def open(self) -> int:
        """Open the file, if it is not; returns its size.

        Raises:
            RecordError: when it cannot be written.
        """
        with writing(self.path):
            if self._file is None:
                self._file = _mended(self.path)
            return os.fstat(self._file.fileno()).st_size

    def append(self, data: bytes) -> None:
        """Append finished lines.

        Raises:
            RecordError: when they cannot be written.
        """
        with writing(self.path):
            if self._file is None:
                self._file = _mended(self.path)
            try:
                write_all(self._file.fileno(), data)
            except BaseException:
                self.close()  # half a line may be there: opening again removes it
                raise

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a file that is open for that only.

    Raises:
        RecordError: when it cannot be written.
    """
    with closing(Lines(path)) as lines:
        lines.append((json.dumps(record) + "\n").encode())


def _mended(path: Path) -> FileIO:
    file = open_growing(path)
    try:
        end = keep = os.fstat(file.fileno()).st_size
        while end:
            start = max(0, end - CHUNK)
            newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
            keep = start + newline + 1
            if newline >= 0:
                break
            end = start
        os.ftruncate(file.fileno(), keep)
    except BaseException:
        file.close()
        raise
    return file


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every finished line of a file, raw and parsed.

    Raises:
        UserError: for a file that cannot be read, or a line that is no record.
    """
    with reading(path) as file:
        for number, line in enumerate(finished_lines(file), start=1):
            yield line, parsed(line, path, number)


def finished_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; one that is too long for any record comes without its end."""
    while line := file.readline(MOST_LINE):
        if line.endswith(b"\n"):
            yield line
        elif len(line) == MOST_LINE:
            yield line
            return
        else:
            return


def parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The record of a line.

    Args:
        number: of the line, for the message.

    Raises:
        UserError: when it is none.
    """
    try:
        return record_of(line)
    except (ValueError, RecursionError) as error:
        raise damaged(path, number, error) from error


def record_of(line: bytes) -> dict[str, Any]:
    """What a line says.

    Raises:
        ValueError: when it is no record, or RecursionError.
    """
    if len(line) >= MOST_LINE:
        raise ValueError(f"it has more than {MOST_LINE} bytes")
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("step", 0)) is not int:
        raise ValueError("not a record")
    return record


def damaged(path: Path, number: int, error: Exception) -> UserError:
    """What to say about a line that is not what it should be."""
    return UserError(
        f"{named(path)} is damaged in line {number} ({what_is_wrong(error)}): delete that line or "
        "restore the file from a copy"
    )


def joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines into pieces worth a system call."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
