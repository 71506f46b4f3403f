"""Commands on how a run went: `blocklocal report|timeline|track`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocklocal import sending
from blocklocal.commands.terminal import say
from blocklocal.run_report import write_report
from learning.errors import UserError
from orchestrator.rundir import RunDirectory
from orchestrator.trace import concurrency, idle_shares, read_spans, write_trace


def timeline_command(run: Path) -> None:
    """Write a run's timeline: trace.json for Perfetto, and timeline.png."""
    from orchestrator.timeline import draw  # here, as in `compare`: training does without pictures

    directory = RunDirectory.open(run)
    spans = read_spans(directory.path / "spans.jsonl")
    if not spans:
        raise UserError(f"{run} has no spans yet: train at least one step")
    write_trace(spans, directory.path / "trace.json")
    draw(spans, directory.path / "timeline.png")
    together = concurrency(spans)
    say(f"wrote {directory.path / 'trace.json'} and timeline.png")
    for actor, idle in idle_shares(spans).items():
        say(f"  {actor}: idle {idle:.0%}")
    say(
        f"  two or more blocks at work {together.share:.0%} of the time, "
        f"up to {together.steps_apart} steps apart"
    )


def report_command(run: Path) -> None:
    """Write a run's report, report.md, and its pictures: curves.png and timeline.png."""
    from blocklocal.run_curves import draw_curves  # here, as in `timeline`
    from orchestrator.timeline import draw

    directory = RunDirectory.open(run)
    draw_curves(directory.read_metrics(), directory.path / "curves.png")
    spans = read_spans(directory.path / "spans.jsonl")
    if spans:
        draw(spans, directory.path / "timeline.png")
    say(f"wrote {write_report(directory, spans)} and its pictures")


def track_command(
    run: Path,
    *,
    uri: Annotated[str | None, Parameter(help="of MLflow, instead of the run's")] = None,
) -> None:
    """Send MLflow what waits in a run's or a sweep's directory since MLflow did not answer."""
    sent, refused = sending.send(run, uri)
    say(f"sent {sent} records to MLflow" if sent else f"nothing in {run} waits for MLflow")
    if refused is not None:
        say(f"MLflow has refused some records: they are in {refused}")
