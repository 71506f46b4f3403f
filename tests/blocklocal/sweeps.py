"""What the tests of sweeps share: a small sweep file, and what a sweep has left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import yaml

from orchestrator.rundir import RunDirectory

SMALL = {
    "run": {"name": "small"},
    "network": {"kind": "mlp", "widths": [16, 16]},
    "blocks": {"at": ["layer2"]},
    "engine": {"kind": "sequential", "resources": {"threads": 1}},
    "tracking": {"enabled": False},
    "training": {"steps": 24, "batch": 32, "evaluate_every": 6},
    "sweep": {"trials": 3, "parallel": 2, "directory": "swept"},
    "space": {"optimizer.lr": {"loguniform": [1e-3, 1e-1]}},
}


def write(tree: Any, **sections: Any) -> Path:
    """A sweep file in the current directory; sections are laid over those of a tree."""
    merged = {**tree}
    for name, section in sections.items():
        merged[name] = {**tree.get(name, {}), **section}
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(merged))
    return path


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "trials.csv").open()))


def assert_same_bits(a: RunDirectory, b: RunDirectory) -> None:
    """Two runs have ended with the same tensors and measured the same on the way."""
    assert a.checkpoints.last == b.checkpoints.last is not None
    left, right = (r.checkpoints.load(r.checkpoints.last or 0).state for r in (a, b))
    assert left.keys() == right.keys()
    for learner in left:
        assert left[learner].keys() == right[learner].keys()
        for name, tensor in left[learner].items():
            assert torch.equal(tensor, right[learner][name]), (learner, name)
    assert a.read_metrics() == b.read_metrics()
