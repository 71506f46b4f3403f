"""What a run writes down as it goes: lines of metrics, spans, incidents and changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from actors.operations import Span
from orchestrator.files import replace_file, write_all
from orchestrator.lines import joined, open_lines, read_lines

METRICS, SPANS = "metrics.jsonl", "spans.jsonl"
_INCIDENTS, _CHANGES = "incidents.jsonl", "changes.jsonl"


class RunRecords:
    """The files of records in the directory of a run; each is open from its first append on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, FileIO] = {}

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append metric records; those with a "step" can be rewound.

        Raises:
            ValueError: for a number that is not finite; then nothing is written.
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
        return self._read(METRICS)

    def read_incidents(self) -> list[dict[str, Any]]:
        """What was lost, and what was done about it; the file comes with the first."""
        return self._read(_INCIDENTS) if (self.path / _INCIDENTS).exists() else []

    def read_changes(self) -> list[dict[str, Any]]:
        """How the chain of actors changed; the file comes with the first."""
        return self._read(_CHANGES) if (self.path / _CHANGES).exists() else []

    def _read(self, name: str) -> list[dict[str, Any]]:
        return [record for _, record in read_lines(self.path / name)]

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
            replace_file(path, joined(lines))

    def close(self) -> None:
        """Close open files; the next append opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        if name not in self._files:
            self._files[name] = open_lines(self.path / name)
        try:
            write_all(self._files[name].fileno(), "".join(lines).encode())
        except BaseException:
            # Half a line may be there (a full disk): opening again removes it.
            self._files.pop(name).close()
            raise
