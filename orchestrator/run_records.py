"""What a run writes down as it goes: lines of metrics, spans, incidents and changes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from actors.operations import Span
from learning.errors import shown
from orchestrator.lines import Lines, damaged, joined, read_lines
from orchestrator.record_files import replace_record

METRICS, SPANS = "metrics.jsonl", "spans.jsonl"
_INCIDENTS, _CHANGES = "incidents.jsonl", "changes.jsonl"


Check = Callable[[Mapping[str, Any]], None]
"""Raises LookupError or TypeError for what is no such record."""


class RunRecords:
    """The files of records in the directory of a run; each is open from its first append on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Lines] = {}

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append metric records; those with a "step" can be rewound.

        Raises:
            ValueError: for a number that is not finite; then nothing is written.
            RecordError: when they cannot be written, as from all that is appended.
        """
        self._append(METRICS, records)

    def append_spans(self, actor: str, spans: Iterable[Span]) -> None:
        """Append what operations of one actor took."""
        self._append(SPANS, ({"actor": actor, **span._asdict()} for span in spans))

    def append_incident(self, record: Mapping[str, Any]) -> None:
        """Append what was lost and what was done about it."""
        self._append(_INCIDENTS, [record])

    def append_change(self, step: int, what: str, lanes: int) -> None:
        """Append how the chain of actors changed before a step."""
        self._append(_CHANGES, [{"at": time.time(), "step": step, "what": what, "lanes": lanes}])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metric records; a last line that a killed process left unfinished is ignored.

        Raises:
            UserError: for any other damage, with the number of the line.
        """
        return self._read(METRICS, _check_metrics)

    def read_incidents(self) -> list[dict[str, Any]]:
        """What was lost, and what was done about it; the file comes with the first."""
        return self._read_if_there(_INCIDENTS, _check_incident)

    def read_changes(self) -> list[dict[str, Any]]:
        """How the chain of actors changed; the file comes with the first."""
        return self._read_if_there(_CHANGES, _check_change)

    def _read_if_there(self, name: str, check: Check) -> list[dict[str, Any]]:
        return self._read(name, check) if os.path.lexists(self.path / name) else []

    def _read(self, name: str, check: Check) -> list[dict[str, Any]]:
        records = []
        for number, (_, record) in enumerate(read_lines(self.path / name), start=1):
            try:
                check(record)
            except (LookupError, TypeError, ValueError) as error:
                raise damaged(self.path / name, number, error) from error
            records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop the metrics and spans of steps >= `step`: training is about to replay them.

        A crash between the two files is harmless, because the next resume rewinds again.

        Raises:
            UserError: for a damaged line; its file stays as it is.
        """
        self.close()  # open files would keep writing to the old ones
        for name in (METRICS, SPANS):
            path = self.path / name
            lines = (raw for raw, r in read_lines(path) if r.get("step", step - 1) < step)
            replace_record(path, joined(lines))

    def close(self) -> None:
        """Close open files; the next append opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        if name not in self._files:
            self._files[name] = Lines(self.path / name)
        self._files[name].append("".join(lines).encode())


def _check_metrics(record: Mapping[str, Any]) -> None:
    _check(record, {"step": int, "split": str})
    for name, value in record.items():
        if name not in ("step", "split"):
            _check_type(name, value, float)


def _check_incident(record: Mapping[str, Any]) -> None:
    _check(record, {"at": float, "step": int, "action": str, "steps_lost": int, "losses": list})
    for loss in record["losses"]:
        _check(loss, {"name": str, "kind": str})


def _check_change(record: Mapping[str, Any]) -> None:
    _check(record, {"at": float, "step": int, "what": str, "lanes": int})


def _check(record: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        _check_type(name, record[name], kind)


def _check_type(name: str, value: object, kind: type) -> None:
    # By type: isinstance would let true and false pass for numbers.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{shown(name)} is {shown(value, 40)}, not of type {kind.__name__}")
