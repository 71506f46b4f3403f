"""Tiny studies that the tests of `blocklocal compare` share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.blocklocal.helpers import save_arrays

TINY: dict[str, Any] = {
    "name": "tiny",
    "settings": {
        "data": {"kind": "arrays", "path": "mine.npz", "validation": 0.2},
        "network": {"widths": [5, 5]},
        "blocks": {"at": ["layer2"]},
        "training": {"steps": 4, "batch": 8, "evaluate_every": 2},
    },
    "baseline": "backprop",
    "rules": {"backprop": ["rule.kind=backprop"], "local": {"rule": {"kind": "local"}}},
    "seeds": [0, 1],
    "workers": 2,
}


def write_study(directory: Path, **changes: Any) -> Path:
    """Write `study.yaml`, the tiny study with some keys changed, and its data."""
    save_arrays(directory / "mine.npz")
    path = directory / "study.yaml"
    study = {name: value for name, value in (TINY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def kept(directory: Path, kind: str = "runs") -> dict[str, dict[str, Any]]:
    """The records in a study's directory, by file name."""
    return {p.name: json.loads(p.read_text()) for p in sorted((directory / kind).glob("*.json"))}
