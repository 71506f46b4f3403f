"""Commands that read a run: `blocklocal eval|export|report|timeline|track`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocklocal import sending
from blocklocal.commands.terminal import say
from blocklocal.identity import check_checkpoint, made_of
from blocklocal.inference import evaluate_model, load_run
from blocklocal.loading import step_of
from blocklocal.run_report import write_report
from learning.errors import UserError
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import export as export_state
from orchestrator.trace import concurrency, idle_shares, read_spans, write_trace

Which = Annotated[
    str | None, Parameter(help="best, last or a step; by default best where there is one")
]


def eval_command(
    run: Path,
    *words: Annotated[str, Parameter(help="data.key=value settings, for other data")],
    split: str = "test",
    checkpoint: Which = None,
) -> None:
    """Evaluate a run's checkpoint (`best`, `last` or a step) on a split, as one plain module."""
    directory = RunDirectory.open(run)
    step = step_of(directory, checkpoint)
    config, dataset, trained = load_run(directory, step, words)
    loss, accuracy = evaluate_model(trained.model, dataset, split, config)
    if words:
        say(f"on other data than {run} was trained with: {' '.join(words)}")
    say(f"step {step}  {split} accuracy {accuracy:.4%}  loss {loss:.6f}")


def export_command(run: Path, output: Path, *, checkpoint: Which = None) -> None:
    """Write a checkpoint as one safetensors state_dict of the original module.

    Its metadata say how raw rows are preprocessed.
    """
    directory = RunDirectory.open(run)
    step = step_of(directory, checkpoint)
    made = made_of(directory)
    found = directory.checkpoints.load(step)
    check_checkpoint(made, found)
    if found.preprocessing is None:
        print(
            f"blocklocal: warning: checkpoint {step} of {run} was written by a version that kept "
            f"no preprocessing, so {output} has none",
            file=sys.stderr,
        )
    export_state(found.state, output, found.preprocessing)
    say(f"wrote {output} (step {step})")


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
