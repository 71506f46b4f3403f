"""The command line: `blocklocal train`, `tune`, `eval` and the other commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from cyclopts import App, CycloptsError

from actors.memory import keep_freed_memory
from blocklocal.signals import handled
from learning.bounds import usable_path
from learning.doing import shown
from learning.errors import LostError, UserError, exits_named, one_line
from orchestrator.stopping import Stopping

app = App(
    name="blocklocal",
    help="Train networks as blocks that learn from local losses.",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
COMMANDS = {
    "train": ("train", "Train a network, or go on with a run."),
    "tune": (
        "tune",
        "Search hyperparameters: many runs of one configuration, or go on with a sweep.",
    ),
    "eval": (
        "results",
        "Evaluate a run's checkpoint (`best`, `last` or a step) on a split, as one plain module.",
    ),
    "export": (
        "results",
        "Write a checkpoint as one safetensors state_dict of the original module.",
    ),
    "plan": (
        "plan",
        "Print how a network is cut into blocks, and with --simulate what more devices would do.",
    ),
    "report": (
        "runs",
        "Write a run's report, report.md, and its pictures: curves.png and timeline.png.",
    ),
    "timeline": ("runs", "Write a run's timeline: trace.json for Perfetto, and timeline.png."),
    "compare": (
        "compare",
        "Run a study, rules x networks x blocks x seeds, or go on with it; write its report.",
    ),
    "track": (
        "runs",
        "Send MLflow what waits in a run's or a sweep's directory since MLflow did not answer.",
    ),
    "doctor": (
        "doctor",
        "Check this machine, or a cluster and whether a run would do there; exit code 1 if not.",
    ),
}
"""Where each command is, and what it does: imported when it is used, for that takes seconds."""
for _name, (_module, _help) in COMMANDS.items():
    app.command(f"blocklocal.commands.{_module}:{_name}_command", name=_name, help=_help)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; user errors are one sentence on standard error and exit code 2.

    A signal that ends it gives 128 and its number.
    """
    keep_freed_memory()
    if sys.path[0] != (here := str(Path.cwd())):
        sys.path.insert(0, here)  # the user's own networks live beside their YAML
    words = sys.argv[1:] if arguments is None else arguments
    with handled() as stopping, shown():
        return _run(words, stopping)


def _run(arguments: list[str], stopping: Stopping) -> int:
    try:
        with exits_named():
            _check_names(arguments)
            _load(arguments)
            code = app(
                arguments, exit_on_error=False, print_error=False, result_action="return_value"
            )
    except (UserError, CycloptsError) as error:
        text = f"blocklocal: {one_line(str(error))}"
        print("\n".join([text, *_notes(error)]), file=sys.stderr)
        return 2
    except LostError as error:
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


def _load(words: list[str]) -> None:
    """Import the command that is asked for, and have its work done by one thread at a time."""
    if not words or words[0] not in COMMANDS or {"-h", "--help"} & set(words):
        return
    import_module(f"blocklocal.commands.{COMMANDS[words[0]][0]}")
    import torch

    with suppress(RuntimeError):  # torch takes this once a process, before its first work
        torch.set_num_interop_threads(1)


def _notes(error: BaseException) -> list[str]:
    """What else went wrong on the way out."""
    return list(getattr(error, "__notes__", []))


if __name__ == "__main__":
    sys.exit(main())
