"""Commands import what they need, when they need it: the rest takes seconds."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from blocklocal.cli import COMMANDS

HEAVY = {"torch", "ray", "mlflow", "matplotlib", "pandas", "sklearn", "sqlalchemy", "pyarrow"}
AFTER = """
import json, sys
{0}
print(json.dumps(sorted(set(sys.modules) & set({1!r}))))
"""


def imported(code: str) -> set[str]:
    """Which heavy modules a new process has after some code."""
    command = [sys.executable, "-c", AFTER.format(code, HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(word: str) -> None:
    assert imported(f"from blocklocal.launch import main; main([{word!r}])") == set()


def test_eval_and_export_import_no_cluster_tracking_or_pictures() -> None:
    assert imported("import blocklocal.commands.results") == {"torch"}


def test_the_help_of_a_command_that_is_not_imported_is_its_own() -> None:
    for name, (module, said) in COMMANDS.items():
        commands = importlib.import_module(f"blocklocal.commands.{module}")
        text = inspect.getdoc(getattr(commands, f"{name}_command"))
        assert text is not None and text.splitlines()[0] == said
