"""A queue on disk of what MLflow is still to be told: JSON lines, in order, each until it is sent.

    tracking/
      000001.jsonl ...   what waits, oldest first; a file is deleted when all of it is sent
      sent.json          up to where it is sent, and how MLflow calls what was sent
      files/, models/    copies that wait with their lines
      refused.jsonl      what MLflow will never take, with its reason

One process holds the queue, the one with the lock. In it threads append and one of them reads. What
was appended outlives the process, however that ends; a torn last line is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from learning.errors import UserError, named
from learning.settings import Settings
from orchestrator.files import sealed
from orchestrator.lines import Lines, append_line, damaged, finished_lines, record_of
from orchestrator.record_files import (
    check_no_link,
    open_growing,
    read_sealed,
    reading,
    replace_record,
    writing,
)

SEGMENT_BYTES = 4 * 2**20
"""A file that has grown to this size is followed by the next."""

_MOST = 10**15
_NAME = re.compile(r"[0-9]{6,15}")
Record = dict[str, Any]


class Position(NamedTuple):
    """The end of a record: the number of its file and the bytes up to there."""

    segment: int = 1
    offset: int = 0


class Sent(Settings):
    """What `sent.json` holds."""

    segment: int = Field(ge=1, lt=_MOST)
    offset: int = Field(ge=0, lt=_MOST)
    names: dict[str, str]
    about: dict[str, str | None]


class Spool:
    """The queue in a directory, which is made if missing.

    Attributes:
        path: of the directory.
        names: how MLflow calls what the records name, `run <key>` or `model <key>`: kept with the
            position, so that nothing is made twice.
        about: whatever else is to be known by who sends the rest.
    """

    def __init__(self, path: Path) -> None:
        """Take the queue over.

        Raises:
            UserError: when another process has it, or it is damaged or cannot be written.
        """
        self.path = path
        try:
            check_no_link(path, "put a directory in its place")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}): make it writable, or set "
                "tracking.enabled to false"
            ) from error
        with writing(path / "lock"):
            self._lock = open_growing(path / "lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"{path} is in use by a process that still sends it: wait until it ends"
            ) from error
        except BaseException:
            self._lock.close()
            raise

    def _load(self) -> None:
        self._at, self.names = Position(), dict[str, str]()
        self.about = dict[str, str | None]()
        path, fix = self.path / "sent.json", f"delete {self.path}, and what waits in it is not sent"
        if os.path.lexists(path):
            try:
                state = Sent.model_validate(read_sealed(path, fix))
            except ValidationError as error:
                raise UserError(f"{named(path)} is foreign: {fix}") from error
            self._at = Position(state.segment, state.offset)
            self.names, self.about = state.names, state.about
        self._counting, self._appending = threading.Lock(), threading.Lock()
        self._segment = max([self._at.segment, *self._segments()])
        self._file = Lines(self._name(self._segment))
        self._size = self._file.open()
        self._waiting = self._left()

    def _name(self, segment: int) -> Path:
        return self.path / f"{segment:06d}.jsonl"

    def _segments(self) -> list[int]:
        names = (p.stem for p in self.path.glob("*.jsonl"))
        return sorted(int(name) for name in names if _NAME.fullmatch(name))

    def _left(self) -> int:
        """How many records wait in the files."""
        count = 0
        for segment in self._segments():
            if segment >= self._at.segment:
                with reading(self._name(segment)) as file:
                    file.seek(self._at.offset if segment == self._at.segment else 0)
                    count += sum(1 for _ in finished_lines(file))
        return count

    @property
    def waiting(self) -> int:
        """How many records are not sent."""
        return self._waiting

    def append(self, record: Mapping[str, Any]) -> None:
        """Put a record at the end; once this has returned, it outlives the process.

        Raises:
            RecordError: when it cannot be written.
        """
        with self._appending:
            self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._size >= SEGMENT_BYTES:
            self._file.close()
            self._segment, self._size = self._segment + 1, 0
            self._file = Lines(self._name(self._segment))
        data = (json.dumps(record) + "\n").encode()
        self._file.append(data)
        self._size += len(data)
        with self._counting:
            self._waiting += 1

    def read(self, limit: int) -> list[tuple[Record, Position]]:
        """Up to `limit` records that are not sent, oldest first, each with its end.

        Raises:
            UserError: for a line that is damaged.
        """
        found: list[tuple[Record, Position]] = []
        at = self._at
        while len(found) < limit:
            last = not self._name(at.segment + 1).exists()  # before reading: it may come meanwhile
            lines, size = self._lines(at, limit - len(found))
            for line in lines:
                at = Position(at.segment, at.offset + len(line))
                found.append((self._parsed(line, at), at))
            if last or at.offset < size:
                break
            at = Position(at.segment + 1)
        return found

    def _lines(self, at: Position, limit: int) -> tuple[list[bytes], int]:
        """Up to `limit` lines of a file, and its size before they were read."""
        with reading(self._name(at.segment)) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(at.offset)
            return list(islice(finished_lines(file), limit)), size

    def _parsed(self, line: bytes, at: Position) -> Record:
        try:
            record = record_of(line)
            if not isinstance(record.get("do"), str):
                raise ValueError("not a record")
        except (ValueError, RecursionError) as error:
            path = self._name(at.segment)
            with reading(path) as file:
                number = file.read(at.offset).count(b"\n")
            raise damaged(path, number, error) from error
        return record

    def sent(self, position: Position, count: int) -> None:
        """Note that all is sent up to `position`, `count` records more than before."""
        done, self._at = range(self._at.segment, position.segment), position
        self.save()
        for segment in done:
            self._delete(segment)
        with self._counting:
            self._waiting -= count

    def save(self) -> None:
        """Write position, names and what else is to be known to the disk."""
        state = {"segment": self._at.segment, "offset": self._at.offset}
        state_and_names = {**state, "names": self.names, "about": self.about}
        replace_record(self.path / "sent.json", [sealed(state_and_names)])

    def _delete(self, segment: int) -> None:
        with writing(self._name(segment), "delete"):
            self._name(segment).unlink(missing_ok=True)

    def refuse(self, record: Record, why: str) -> None:
        """Put a record aside that will never be taken."""
        append_line(self.path / "refused.jsonl", {"why": why, **record})

    def close(self) -> None:
        """Let the queue go; of an empty one only `sent.json` and what was refused stay.

        Raises:
            RecordError: when that cannot be written; the queue is let go all the same.
        """
        self._file.close()
        try:
            if not self._waiting:
                self._at = Position(self._segment + 1)
                self.save()  # first: a crash after it leaves files that no one reads
                for segment in self._segments():
                    self._delete(segment)
                for name in ("files", "models"):
                    shutil.rmtree(self.path / name, ignore_errors=True)
        finally:
            self._lock.close()
