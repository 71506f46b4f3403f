"""What the tests of the command line and the Python API share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blocklocal import cli
from learning.data import Dataset, arrays_dataset

SCRIPT = Path(sys.executable).with_name("blocklocal")
UNTRACKED = ("engine.kind=sequential", "engine.resources.threads=1", "tracking.enabled=false")
SMALL = (
    *UNTRACKED,
    "network.widths=[16,16,16]",
    "blocks.at=[layer2]",  # not timed, so every run has the same plan
    "training.batch=32",
    "training.steps=40",
    "training.evaluate_every=8",
    "optimizer.lr=0.01",
)


def listing(directory: Path) -> dict[str, bytes | None]:
    """Every file below `directory` with its bytes, every directory with None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command that succeeds; returns what it printed."""
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert without_progress(captured.err) == ""
    return captured.out


def sentence(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command that is refused with one sentence and exit code 2; returns the sentence."""
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    error = capsys.readouterr().err
    assert code == 2, error
    return only_sentence(error)


def only_sentence(error: str) -> str:
    """What standard error holds, if that is one sentence of the program and what it was doing."""
    error = without_progress(error)
    assert error.startswith("blocklocal: ") and error.endswith("\n")
    assert error.count("\n") == 1, error
    return error.removeprefix("blocklocal: ").rstrip("\n")


def without_progress(error: str) -> str:
    """What standard error holds but for the lines that say what takes long (`learning.doing`)."""
    return "".join(line for line in error.splitlines(True) if not line.startswith("... "))


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Like `sentence`, and the command leaves the current directory as it was."""
    assert not Path(".venv").exists(), "a test works in a directory of its own"
    before = listing(Path.cwd())
    text = sentence(capsys, *words)
    assert listing(Path.cwd()) == before
    return text


def script(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed `blocklocal` in a process of its own."""
    return subprocess.run(
        [str(SCRIPT), *words], cwd=cwd, capture_output=True, text=True, timeout=600
    )


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def spans_of(run: Path) -> list[dict[str, Any]]:
    """The records of spans.jsonl."""
    return [json.loads(line) for line in (run / "spans.jsonl").read_text().splitlines()]


def state_of(run: Path) -> dict[str, Any]:
    """What state.json says."""
    return json.loads((run / "state.json").read_text())


def save_arrays(path: Path, rows: int = 40, classes: int = 3) -> Path:
    """Write an `.npz` file of random rows whose labels are 0..classes-1."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype(np.float32)
    y = np.arange(rows) % classes
    np.savez(path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    return path


def blobs(rows: int = 600, classes: int = 4) -> Dataset:
    """Well separated clouds of points in 8 dimensions; chance is 1 / classes."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(classes, 8)) * 3
    y = np.arange(rows) % classes
    x = (centres[y] + random.normal(size=(rows, 8))).astype(np.float32)
    cut = rows * 3 // 4
    return arrays_dataset(x[:cut], y[:cut], x[cut:], y[cut:], name="blobs")
