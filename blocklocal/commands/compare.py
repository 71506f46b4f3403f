"""The command `blocklocal compare`; pictures and reports are imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocklocal.commands.terminal import console, say
from learning.errors import UserError


def compare_command(
    study: Path,
    *words: Annotated[str, Parameter(help="dotted.key=value settings over the study's base")],
    directory: Annotated[
        Path | None, Parameter(help="of the results; by default the study's, or studies/<name>")
    ] = None,
    workers: Annotated[int | None, Parameter(help="runs at once")] = None,
    adopt: Annotated[Path | None, Parameter(help="take runs of a JSON file into the study")] = None,
    report: Annotated[bool, Parameter(help="only write the report of the runs there are")] = False,
    dry_run: Annotated[bool, Parameter(help="check everything, list what would run")] = False,
) -> int:
    """Run a study, rules x networks x blocks x seeds, or go on with it; write its report."""
    from blocklocal.compare.command import Comparison

    if workers is not None and workers < 1:
        raise UserError(f"--workers = {workers} is not possible: give 1 or more")
    if sum((adopt is not None, report, dry_run)) > 1:
        raise UserError("--adopt, --report and --dry-run do not go together: give one of them")
    comparison = Comparison.open(study, words, directory)
    if adopt is not None:
        added, found = comparison.adopt(adopt)
        say(f"{found} runs of {adopt} belong to this study, {added} of them new")
    if dry_run:
        comparison.check(jobs := comparison.missing())
        for job in jobs:
            say(f"would run: {job.label}")
        return 0
    code = 0 if report or adopt else comparison.complete(workers, console)
    if code == 0 or comparison.has_runs():
        comparison.report()
        say(f"wrote {comparison.directory / 'report.md'}")
    return code
