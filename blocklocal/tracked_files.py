"""The files that a run has at its end besides its records, and that MLflow keeps."""

from __future__ import annotations

import logging
from pathlib import Path

from blocklocal.run_report import write_report
from learning.errors import UserError, named
from orchestrator.rundir import RunDirectory
from orchestrator.trace import ActorSpan, read_spans, write_trace

_log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of records of a timeline that is read without being asked for: some seconds of work."""
NAMES = ("config.yaml", "plan.json", "version.json")


def report_of(run: RunDirectory) -> None:
    """Write the report of a run, without the timeline where that is too long.

    A run whose report cannot be written has come as far as it has; that is a warning.
    """
    try:
        write_report(run, _timeline(run))
    except UserError as error:
        _without("report", run, error)


def files_of(run: RunDirectory) -> list[Path]:
    """Configuration, plan, versions, report and timeline (`trace.json`, for Perfetto) so far.

    Those that there are: what cannot be written now is a warning.
    """
    files = [run.path / name for name in NAMES]
    try:
        spans = _timeline(run)
        files.append(write_report(run, spans))
        if spans:
            write_trace(spans, run.path / "trace.json")
            files.append(run.path / "trace.json")
    except UserError as error:
        _without("report and timeline", run, error)
    return [file for file in files if file.is_file()]


def _without(what: str, run: RunDirectory, error: UserError) -> None:
    _log.warning("the %s of %s is left out (%s)", what, named(run.path), error)


def _timeline(run: RunDirectory) -> list[ActorSpan]:
    records = run.path / "spans.jsonl"
    size = records.stat().st_size if records.exists() else 0
    if size > MOST_BYTES:
        _log.warning(
            "the timeline of %s is not in its report, nor sent to MLflow, because its records have "
            "%d MiB: blocklocal report and blocklocal timeline write it",
            run.path,
            size // 2**20,
        )
    return read_spans(records) if 0 < size <= MOST_BYTES else []
