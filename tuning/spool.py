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
import shutil
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from learning.errors import UserError
from orchestrator.files import read_sealed, replace_file, sealed, write_all
from orchestrator.lines import damaged, open_lines

SEGMENT_BYTES = 4 * 2**20
"""A file that has grown to this size is followed by the next."""

Record = dict[str, Any]


class Position(NamedTuple):
    """The end of a record: the number of its file and the bytes up to there."""

    segment: int = 1
    offset: int = 0


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
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileIO(path / "lock", "a")
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}): make it writable, or set "
                "tracking.enabled to false"
            ) from error
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
        if (self.path / "sent.json").exists():
            fix = f"delete {self.path}, and what waits in it is not sent"
            state = read_sealed(self.path / "sent.json", fix)
            self._at = Position(state["segment"], state["offset"])
            self.names, self.about = state["names"], state["about"]
        self._counting, self._appending = threading.Lock(), threading.Lock()
        last = max([self._at.segment, *self._segments()])
        self._file, self._segment = open_lines(self._name(last)), last
        self._size = os.fstat(self._file.fileno()).st_size
        self._waiting = self._left()

    def _name(self, segment: int) -> Path:
        return self.path / f"{segment:06d}.jsonl"

    def _segments(self) -> list[int]:
        names = (p.stem for p in self.path.glob("*.jsonl"))
        return sorted(int(name) for name in names if name.isdigit())

    def _left(self) -> int:
        """How many records wait in the files."""
        count = 0
        for segment in self._segments():
            if segment >= self._at.segment:
                with self._name(segment).open("rb") as file:
                    file.seek(self._at.offset if segment == self._at.segment else 0)
                    count += sum(1 for _ in file)
        return count

    @property
    def waiting(self) -> int:
        """How many records are not sent."""
        return self._waiting

    def append(self, record: Mapping[str, Any]) -> None:
        """Put a record at the end; once this has returned, it outlives the process."""
        with self._appending:
            self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._size >= SEGMENT_BYTES:
            self._file.close()
            self._segment, self._size = self._segment + 1, 0
            self._file = open_lines(self._name(self._segment))
        data = (json.dumps(record) + "\n").encode()
        try:
            write_all(self._file.fileno(), data)
        except BaseException:  # half a line may be there (a full disk): opening again removes it
            self._file.close()
            self._file = open_lines(self._name(self._segment))
            raise
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
            for line in self._lines(at, limit - len(found)):
                at = Position(at.segment, at.offset + len(line))
                found.append((self._parsed(line, at), at))
            if last or at.offset < self._name(at.segment).stat().st_size:
                break
            at = Position(at.segment + 1)
        return found

    def _lines(self, at: Position, limit: int) -> list[bytes]:
        lines: list[bytes] = []
        with self._name(at.segment).open("rb") as file:
            file.seek(at.offset)
            for line in file:
                if not line.endswith(b"\n") or len(lines) == limit:
                    break
                lines.append(line)
        return lines

    def _parsed(self, line: bytes, at: Position) -> Record:
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("do"), str):
                raise ValueError("not a record")
        except ValueError as error:
            path = self._name(at.segment)
            number = path.read_bytes()[: at.offset].count(b"\n")
            raise damaged(path, number, error) from error
        return record

    def sent(self, position: Position, count: int) -> None:
        """Note that all is sent up to `position`, `count` records more than before."""
        done, self._at = range(self._at.segment, position.segment), position
        self.save()
        for segment in done:
            self._name(segment).unlink(missing_ok=True)
        with self._counting:
            self._waiting -= count

    def save(self) -> None:
        """Write position, names and what else is to be known to the disk."""
        state = {"segment": self._at.segment, "offset": self._at.offset}
        state_and_names = {**state, "names": self.names, "about": self.about}
        replace_file(self.path / "sent.json", [sealed(state_and_names)])

    def refuse(self, record: Record, why: str) -> None:
        """Put a record aside that will never be taken."""
        with open_lines(self.path / "refused.jsonl") as file:
            write_all(file.fileno(), (json.dumps({"why": why, **record}) + "\n").encode())

    def close(self) -> None:
        """Let the queue go; of an empty one only `sent.json` and what was refused stay."""
        self._file.close()
        if not self._waiting:
            next_one = self._segment + 1
            self._at = Position(next_one)
            self.save()  # first: a crash after it leaves files that no one reads
            for segment in self._segments():
                self._name(segment).unlink()
            for name in ("files", "models"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        self._lock.close()
