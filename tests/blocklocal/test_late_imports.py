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


CONFINED = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ray":
            seen.append(os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"))
seen = []
sys.meta_path.insert(0, Watch())
import {0}
assert seen == ["0"], seen
"""


@pytest.mark.parametrize("module", ["blocklocal.training", "blocklocal.commands.doctor"])
def test_whoever_may_start_ray_imports_it_confined(module: str) -> None:
    """Ray reads where it may listen when it is imported (`blocklocal.confined`)."""
    command = [sys.executable, "-c", CONFINED.format(module)]
    subprocess.run(command, check=True, timeout=300)


def test_the_help_of_a_command_that_is_not_imported_is_its_own() -> None:
    for name, (module, said) in COMMANDS.items():
        commands = importlib.import_module(f"blocklocal.commands.{module}")
        text = inspect.getdoc(getattr(commands, f"{name}_command"))
        assert text is not None and text.splitlines()[0] == said
