"""The command `blocklocal tune`; Ray Tune is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocklocal.commands.terminal import say
from learning.errors import UserError


def tune_command(
    *words: Annotated[str, Parameter(help="a sweep file, then dotted.key=value settings")],
    resume_sweep: Annotated[
        Path | None, Parameter(name="--resume", help="the directory of a sweep")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="check everything, print what would run")] = False,
) -> None:
    """Search hyperparameters: many runs of one configuration, or go on with a sweep."""
    from blocklocal import sweeping

    if resume_sweep is not None:
        if dry_run:
            raise UserError("--dry-run does not go with --resume: leave one of them out")
        if words:
            raise UserError(f"--resume goes on with a sweep as it is: leave {words[0]!r} out")
        over = sweeping.go_on(resume_sweep, say)
    else:
        if not words or "=" in words[0]:
            raise UserError("blocklocal tune needs a sweep file: blocklocal tune sweep.yaml")
        over = sweeping.start(Path(words[0]), words[1:], say, dry_run=dry_run)
    if not over:
        raise KeyboardInterrupt
