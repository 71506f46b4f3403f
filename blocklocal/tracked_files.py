"""The files of a run that MLflow keeps."""

from __future__ import annotations

import logging
from pathlib import Path

from orchestrator.rundir import RunDirectory
from orchestrator.trace import read_spans, write_trace

_log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of records of a timeline that is drawn without being asked for: some seconds of work."""
NAMES = ("config.yaml", "plan.json", "version.json")


def files_of(run: RunDirectory) -> list[Path]:
    """Configuration, plan, versions, and the timeline (`trace.json`, for Perfetto) up to now."""
    files = [run.path / name for name in NAMES]
    records, trace = run.path / "spans.jsonl", run.path / "trace.json"
    if not records.exists():
        return files
    size = records.stat().st_size
    if size > MOST_BYTES:
        _log.warning(
            "MLflow gets no timeline of %s, whose records have %d MiB: blocklocal timeline writes "
            "it",
            run.path,
            size // 2**20,
        )
        return files
    if spans := read_spans(records):
        write_trace(spans, trace)
        files.append(trace)
    return files
