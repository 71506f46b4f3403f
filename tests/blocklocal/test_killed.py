"""The command line under real kills: of an actor, which the result does not show; of the driver."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.blocklocal.helpers import SCRIPT, metrics_of

NETWORK = '''
import os
import signal
from collections import OrderedDict
from pathlib import Path

import psutil
from torch import nn

HERE = Path(__file__).parent
steps = 0  # of this process; what a module counts is state, which a checkpoint would have to keep


class Bomb(nn.Module):
    """Kills a process in its 700th step, once: that which the file `victim` names."""

    def forward(self, x):
        global steps
        steps += self.training
        if steps == 700 and (HERE / "victim").exists():
            victim = (HERE / "victim").read_text()
            (HERE / "victim").unlink()
            me = psutil.Process()
            (HERE / "actors").write_text(" ".join(str(p.pid) for p in me.parent().children()))
            driver = next(p for p in me.parents() if (HERE / "driver").read_text() == str(p.pid))
            os.kill(me.pid if victim == "actor" else driver.pid, signal.SIGKILL)
        return x


def network():
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), Bomb()]
    more = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
    names = ["flat", "a", "norm", "r1", "bomb", "b", "r2", "head"]
    return nn.Sequential(OrderedDict(zip(names, [*layers, *more])))
'''
STEPS, EVERY = 1500, 200
WORDS = [
    "rule.kind=local",
    "network.kind=custom",
    "network.factory=bombed:network",
    "blocks.at=[b]",
    f"training.steps={STEPS}",
    "training.evaluate_every=1000",
    f"checkpoints.every={EVERY}",
    "engine.transport=direct",
    "engine.resources.threads=1",
    "tracking.enabled=false",
    "run.directory=run",
]


def start(here: Path, *words: str, victim: str | None = None) -> tuple[int, str, str]:
    """The command in a process of its own; its exit code and what it says."""
    (here / "bombed.py").write_text(NETWORK)
    if victim is not None:
        (here / "victim").write_text(victim)
    process = subprocess.Popen(
        [str(SCRIPT), "train", *words],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    (here / "driver").write_text(str(process.pid))
    try:
        output, error = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, output, error


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint."""
    files = sorted((run / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))
    assert len(files) == 2
    return {f"{file.stem}.{n}": t for file in files for n, t in load_file(file).items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    here = tmp_path_factory.mktemp("undisturbed")
    code, _, error = start(here, *WORDS, "engine.kind=sequential")
    assert code == 0, error
    return weights(here / "run")


def test_a_killed_actor_is_replaced_and_recorded(
    tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    run = tmp_path / "run"
    code, output, error = start(tmp_path, *WORDS, victim="actor")
    assert code == 0, error
    assert same(weights(run), expected)
    (incident,) = map(json.loads, (run / "incidents.jsonl").read_text().splitlines())
    (loss,) = incident["losses"]
    assert (loss["name"], loss["kind"]) == ("block1", "actor")
    assert incident["resumed"] in (200, 400, 600)
    assert incident["steps_lost"] == incident["step"] - incident["resumed"]
    assert f"lost block1 (process {loss['process']}" in output
    told = [record["step"] for record in metrics_of(run) if record["split"] == "train"]
    assert told == list(range(STEPS))  # each once, also those that were done twice


def test_after_the_driver_is_killed_no_actor_runs_and_resuming_ends_with_the_same_bits(
    tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    run = tmp_path / "run"
    code, _, _ = start(tmp_path, *WORDS, victim="driver")
    assert code == -9
    actors = [int(pid) for pid in (tmp_path / "actors").read_text().split()]
    left = [psutil.Process(pid) for pid in actors if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs([p for p in left if p.name().startswith("ray::_")], timeout=600)
    assert alive == []
    assert not (run / "checkpoints" / f"step-{STEPS:08d}").exists()
    code, _, error = start(tmp_path, "--resume", "run")
    assert code == 0, error
    assert same(weights(run), expected)
    assert not (run / "incidents.jsonl").exists()
