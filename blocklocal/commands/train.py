"""The command `blocklocal train`: a new run, or on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from blocklocal.clusters import cluster
from blocklocal.commands.terminal import configuration, console, say
from blocklocal.config import load_config, make_config
from blocklocal.identity import check_settings, made_of
from blocklocal.observers import Progress
from blocklocal.preparation import prepare
from blocklocal.result import Result
from blocklocal.resuming import check_given, start_of
from blocklocal.training import resume, train
from learning.errors import UserError
from learning.yaml_files import write_yaml
from orchestrator.rundir import RunDirectory, check_free


def train_command(
    *words: Annotated[str, Parameter(help="a YAML file, then dotted.key=value settings")],
    resume_run: Annotated[Path | None, Parameter(name="--resume", help="a run directory")] = None,
    checkpoint: Annotated[
        str | None, Parameter(help="resume from best, last or a step; by default last")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="print configuration and plan only")] = False,
) -> None:
    """Train a network, or go on with a run."""
    if resume_run is not None and dry_run:
        raise UserError("--dry-run does not go with --resume: leave one of them out")
    if resume_run is not None:
        _resume(resume_run, words, checkpoint)
        return
    if checkpoint is not None:
        raise UserError("--checkpoint goes with --resume only: give both or leave it out")
    config = configuration(words)
    if config.run.directory is not None and not dry_run:
        check_free(config.run.directory)
    with cluster(config):
        prepared = prepare(config)
        if dry_run:
            say(write_yaml(prepared.config.model_dump(mode="json")))
        console.print(prepared.plan.table())
        if dry_run:
            return
        with Progress(console, 0, prepared.schedule.steps) as progress:
            result = train(prepared, [progress])
    _closing(result, progress)


def _resume(path: Path, words: tuple[str, ...], checkpoint: str | None) -> None:
    run = RunDirectory.open(path)
    old = make_config(run.config)
    check_given(run, old, in_python=False)
    config = load_config(None, words, base=run.config)
    made = made_of(run)
    check_settings(made, run, config, [word.partition("=")[0] for word in words])
    start = start_of(run, checkpoint)
    with cluster(config):
        prepared = prepare(config, plan=run.plan, made=made)
        say(f"resuming {path} at step {start} of {prepared.schedule.steps}")
        with Progress(console, start, prepared.schedule.steps) as progress:
            result = resume(prepared, run, [progress], start or None, made=made)
    _closing(result, progress)


def _closing(result: Result, progress: Progress) -> None:
    table = Table()
    table.add_column("block")
    splits = sorted({name.split("/")[0] for name in result.metrics}, reverse=True)
    for split in splits:
        table.add_column(f"{split} accuracy", justify="right")
        table.add_column(f"{split} loss", justify="right")
    for block in result.plan.blocks:
        name = f"block{block.index}"
        cells = []
        for split in splits:
            accuracy = result.metrics.get(f"{split}/{name}/accuracy")
            loss = result.metrics.get(f"{split}/{name}/loss")
            cells += [
                "" if accuracy is None else f"{accuracy:.2%}",
                "" if loss is None else f"{loss:.4f}",
            ]
        table.add_row(name, *cells)
    console.print(table)
    say(f"run directory: {result.directory}")
    say(f"{progress.rate():.1f} steps/s")
