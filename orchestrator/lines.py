"""Files of JSON lines: a run's metrics and spans, which a killed process may leave torn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from learning.errors import UserError

CHUNK = 1 << 20  # bytes of lines that are read or written at once


def open_lines(path: Path) -> FileIO:
    """Open a file of lines; removes an unfinished last line, onto which the next would be glued."""
    file = FileIO(path, "a+")
    end = keep = os.fstat(file.fileno()).st_size
    while end:
        start = max(0, end - CHUNK)
        newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        keep = start + newline + 1
        if newline >= 0:
            break
        end = start
    os.ftruncate(file.fileno(), keep)
    return file


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every finished line of a file, raw and parsed."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
                        raise ValueError("not a record")
                except ValueError as error:
                    raise damaged(path, number, error) from error
                yield line, record
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): restore it from a copy") from error


def damaged(path: Path, number: int, error: ValueError) -> UserError:
    """What to say about a line that is not what it should be."""
    return UserError(
        f"{path} is damaged in line {number} ({error}): delete that line or restore the file "
        "from a copy"
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
