"""The command in processes of its own, and signals at moments that depend on what it has done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from blocklocal import cli
from blocklocal.signals import SIGNALS
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SCRIPT

WORDS = (
    "network.widths=[16,16]",
    "blocks.at=[layer2]",
    "training.batch=32",
    "training.evaluate_every=100",
    "checkpoints.every=100",
    "optimizer.lr=0.003",
    "engine.resources.threads=1",
    "tracking.enabled=false",
    "run.directory=run",
)


def start(here: Path, *words: str) -> subprocess.Popen[str]:
    """`blocklocal` in a process group of its own."""
    return subprocess.Popen(
        [str(SCRIPT), *words],
        cwd=here,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def forked(directory: str, words: tuple[str, ...]) -> None:
    """The command in a process that was forked, with what it says in the file `said`."""
    # The server of forks may have been started by a study, which holds them back from it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.chdir(directory)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.exit(cli.main(list(words)))


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true; False: the process has ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def told(run: Path) -> int:
    """How many records the metrics of a run have."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All of the last checkpoint."""
    checkpoints = RunDirectory.open(run).checkpoints
    assert checkpoints.last is not None
    state = checkpoints.load(checkpoints.last).state
    return {f"{learner}/{n}": t for learner, of in state.items() for n, t in of.items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )
