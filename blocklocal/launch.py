"""The command `blocklocal`: starts a local cluster while it imports the rest.

    main thread     Ray: its processes start ─────────────▶ the command line
    other thread    PyTorch, rules, networks ─────────────▶

Both take seconds and neither needs the other. The configuration is checked before both as far as
that takes no PyTorch (see `blocklocal.early`): no cluster starts for one that has a wrong key or
value. What is found later, such as settings that do not go together, takes the cluster with it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from blocklocal.early import Schema
from blocklocal.signals import handled
from learning.doing import doing, shown
from learning.errors import UserError
from orchestrator.stopping import Stopping

_LONG = (["train"], ["compare"], ["tune"], ["plan"], ["doctor"])
"""Commands that have something to do after they are loaded."""


def wants_local_cluster(words: Sequence[str]) -> bool:
    """Whether a command line will certainly start a cluster here, if it is right in all else."""
    if list(words[:1]) != ["train"] or any(word.startswith("-") for word in words):
        return False
    schema = Schema.load()
    try:
        tree = schema.configuration(words[1:])
    except ValueError:  # the command says what is wrong with it
        return False
    if not schema.fits(tree):
        return False
    directory = tree.get("run", {}).get("directory")
    if directory is not None and os.path.lexists(os.path.expanduser(directory)):
        return False  # it is refused, unless it is empty
    engine = tree.get("engine", {})
    return engine.get("kind", "ray") == "ray" and engine.get("address") is None


def _command_line() -> Callable[[list[str]], int]:
    """Import it, and what `train` does: the command line alone leaves that until it is asked for.

    Without looking for garbage: modules leave none, and there are many objects.
    """
    gc.disable()
    try:
        main = import_module("blocklocal.cli").main
        import_module("blocklocal.commands.train")
        return main
    finally:
        gc.enable()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `blocklocal.cli.main`."""
    with handled() as stopping, shown():
        return _run(list(sys.argv[1:] if arguments is None else arguments), stopping)


def _run(words: list[str], stopping: Stopping) -> int:
    if words[:1] in _LONG:
        doing("loading PyTorch")
    try:
        if not wants_local_cluster(words):
            return import_module("blocklocal.cli").main(words)
        # Before Ray starts: its workers look for modules where this process does.
        sys.path.insert(0, str(Path.cwd()))
        from blocklocal.clusters import local_cluster

        with ThreadPoolExecutor(1) as executor:
            imported = executor.submit(_command_line)
            doing("starting Ray")
            with local_cluster():
                return imported.result()(words)
    except UserError as error:
        print(f"blocklocal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"blocklocal: {stopping.sentence()}", file=sys.stderr)
        return stopping.code if stopping.asked else 130


if __name__ == "__main__":
    sys.exit(main())
