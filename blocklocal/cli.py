"""The command line: `blocklocal train`, `tune`, `eval` and the other commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from cyclopts import App, CycloptsError

from actors.memory import keep_freed_memory
from blocklocal.commands.compare import compare_command
from blocklocal.commands.doctor import doctor_command
from blocklocal.commands.plan import plan_command
from blocklocal.commands.runs import (
    eval_command,
    export_command,
    report_command,
    timeline_command,
    track_command,
)
from blocklocal.commands.train import train_command
from blocklocal.commands.tune import tune_command
from blocklocal.signals import handled
from learning.bounds import usable_path
from learning.doing import shown
from learning.errors import UserError, exits_named, one_line
from orchestrator.losses import ActorLostError
from orchestrator.stopping import Stopping

app = App(
    name="blocklocal",
    help="Train networks as blocks that learn from local losses.",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
for _name, _command in {
    "train": train_command,
    "tune": tune_command,
    "eval": eval_command,
    "export": export_command,
    "plan": plan_command,
    "report": report_command,
    "timeline": timeline_command,
    "compare": compare_command,
    "track": track_command,
    "doctor": doctor_command,
}.items():
    app.command(_command, name=_name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; user errors are one sentence on standard error and exit code 2.

    A signal that ends it gives 128 and its number.
    """
    keep_freed_memory()
    if sys.path[0] != (here := str(Path.cwd())):
        sys.path.insert(0, here)  # the user's own networks live beside their YAML
    with suppress(RuntimeError):  # torch takes this once a process, before its first work
        torch.set_num_interop_threads(1)
    with handled() as stopping, shown():
        return _run(sys.argv[1:] if arguments is None else arguments, stopping)


def _run(arguments: list[str], stopping: Stopping) -> int:
    try:
        with exits_named():
            _check_names(arguments)
            code = app(
                arguments, exit_on_error=False, print_error=False, result_action="return_value"
            )
    except (UserError, CycloptsError) as error:
        text = f"blocklocal: {one_line(str(error))}"
        print("\n".join([text, *_notes(error)]), file=sys.stderr)
        return 2
    except ActorLostError as error:
        text = f"blocklocal: {error}; go on with --resume"
        print("\n".join([text, *_notes(error)]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"blocklocal: {stopping.sentence()}", file=sys.stderr)
        return stopping.code if stopping.asked else 130
    return code if isinstance(code, int) else 0


def _check_names(words: Sequence[str]) -> None:
    """Refuse words that can name no file, before a command looks for it; settings come later.

    Raises:
        UserError: for the first of them.
    """
    for word in words:
        name = word.partition("=")[2] if word.startswith("--") else word
        if name and "=" not in name:
            try:
                usable_path(name)
            except ValueError as error:
                raise UserError(str(error)) from error


def _notes(error: BaseException) -> list[str]:
    """What else went wrong on the way out."""
    return list(getattr(error, "__notes__", []))


if __name__ == "__main__":
    sys.exit(main())
