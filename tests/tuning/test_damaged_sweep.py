"""What a sweep keeps for itself is read right, or told in one sentence, however damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learning.errors import MOST, UserError
from tests.damage import DAMAGE, How
from tuning.jobs import NUMBER, RUN, STEP
from tuning.known import IDS, TOLD, Known
from tuning.spool import Spool
from tuning.sweep import TRIALS, read_outcomes
from tuning.trial import SweepTrial

pytestmark = pytest.mark.usefixtures("no_fsync")
POINTER = "pointer.json"
TRIAL = {"number": 0, "values": {"optimizer.lr": 0.1}, "status": "TERMINATED", "run": "0000"}


def load(directory: Path) -> object:
    trial: Any = object.__new__(SweepTrial)
    trial._number, trial._values = 0, {}
    trial._job = SimpleNamespace(directory=directory)
    trial.load_checkpoint(str(directory))
    return trial._step


READERS: dict[str, Callable[[Path], object]] = {
    TRIALS: read_outcomes,
    IDS: Known,
    TOLD: Known,
    POINTER: load,
    "tracking/sent.json": lambda directory: Spool(directory / "tracking").read(9),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    directory = tmp_path / "sweep"
    (directory / "trials").mkdir(parents=True)
    (directory / TRIALS).write_text(json.dumps([{**TRIAL, "failed": None, "error": None}]))
    (directory / POINTER).write_text(json.dumps({NUMBER: 0, RUN: "0000", STEP: 4}))
    known = Known(directory)
    known.sweep("a1")
    known.told("0000", "0000", 4)
    queue = Spool(directory / "tracking")
    queue.append({"do": "end"})
    queue.save()
    queue.close()
    return directory


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_read_right_or_told_in_one_sentence(sweep: Path, name: str, how: How) -> None:
    READERS[name](sweep)
    others = [sweep / other for other in READERS if other != name]
    kept = [other.read_bytes() for other in others]
    told = 0
    for _ in how(sweep / name, kept):
        try:
            READERS[name](sweep)
        except UserError as error:
            told += 1
            text = str(error)
            assert len(text) <= MOST and text.isprintable(), text
    assert told or name.endswith(".jsonl") or how.__name__ == "flipped", "nobody minded"
