"""A trial that goes on is compared with what its earlier life has left."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.shells import BatchSettings
from blocklocal import UserError
from blocklocal.sweep_runs import TrialRuns
from learning.data import AugmentSettings, load_dataset
from learning.data.settings import ArraysSettings
from learning.fingerprints import data_fingerprint
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import StopTraining
from tests.blocklocal.helpers import save_arrays
from tests.blocklocal.sweeps import SMALL
from tests.orchestrator.engines import Case
from tuning.jobs import Request

pytestmark = pytest.mark.usefixtures("no_fsync")
VARIED = frozenset({"optimizer.lr"})


class _Listener:
    """Hears how a trial goes, and stops it after some reports.

    Args:
        most: reports.
    """

    def __init__(self, most: int = 100) -> None:
        self.heard: list[int] = []
        self._most = most

    def tell(self, steps: int, metrics: Mapping[str, float], last: bool) -> None:
        self.heard.append(steps)
        if len(self.heard) == self._most:
            raise StopTraining

    def check(self) -> None:
        """Go on."""


def _base(here: Path, **training: Any) -> dict[str, Any]:
    return {
        **{name: SMALL[name] for name in ("run", "network", "blocks", "engine", "tracking")},
        "data": {"kind": "arrays", "path": str(here / "x.npz")},
        "training": {"steps": 6, "batch": 8, "evaluate_every": 2, **training},
    }


def _life(here: Path, base: dict[str, Any], lr: float, most: int = 100) -> list[int]:
    """One life of trial 0."""
    listener = _Listener(most)
    request = Request(0, {"optimizer.lr": lr}, here / "0000", None, 0)
    with contextlib.suppress(StopTraining):
        TrialRuns(base, 1.0, 1, None, VARIED)(request, listener)
    return listener.heard


@pytest.fixture
def stopped(here: Path) -> Path:
    """A directory with data and a trial that was stopped after four of its six steps."""
    save_arrays(here / "x.npz")
    assert _life(here, _base(here), 0.01, most=2) == [2, 4]
    return here


def test_the_same_trial_goes_on(stopped: Path) -> None:
    assert _life(stopped, _base(stopped), 0.01) == [2, 4, 6]


def test_one_of_other_values_is_another(stopped: Path) -> None:
    assert _life(stopped, _base(stopped), 0.02) == [2, 4, 6]
    assert (stopped / "0000.unused-1").is_dir()


def test_a_sweep_that_was_edited_does_not_mix_its_trials(stopped: Path) -> None:
    with pytest.raises(UserError) as caught:
        _life(stopped, _base(stopped, batch=4), 0.01)
    said = "the sweep has training.batch = 4 and its trial 0000 was made with 8: write that into "
    assert str(caught.value).startswith(said)
    assert not (stopped / "0000.unused-1").exists()


def test_changed_data_are_refused(stopped: Path) -> None:
    with np.load(stopped / "x.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["x_test"] = changed["x_test"] + 1
    np.savez(stopped / "x.npz", **changed)
    with pytest.raises(UserError, match=r"was trained with other data \(test rows\)"):
        _life(stopped, _base(stopped), 0.01)


def test_an_edited_configuration_of_a_trial_is_refused(stopped: Path) -> None:
    file = stopped / "0000/config.yaml"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.5"))
    with pytest.raises(UserError, match="config.yaml has optimizer.lr = 0.5 and the run was made"):
        _life(stopped, _base(stopped), 0.01)


def test_a_checkpoint_without_its_optimizer_is_refused(stopped: Path) -> None:
    checkpoints = RunDirectory.open(stopped / "0000").checkpoints
    kept = checkpoints.load(4)
    assert kept.fingerprints is not None
    state = {
        learner: {n: t for n, t in tensors.items() if not n.startswith("optimizer.")}
        for learner, tensors in kept.state.items()
    }
    checkpoints.save(
        4,
        state,
        plan_hash=kept.plan_hash,
        rule=kept.rule,
        metrics=None,
        fingerprints=kept.fingerprints.of(state),
        preprocessing=kept.preprocessing,
    )
    with pytest.raises(UserError, match="has no state of the optimizer for block1, which has"):
        _life(stopped, _base(stopped), 0.01)


def test_another_node_may_not_have_other_data_under_the_same_path(here: Path) -> None:
    """What makes the batches loads large files itself, wherever it is."""
    save_arrays(here / "x.npz")
    settings = ArraysSettings(path=here / "x.npz")
    told = data_fingerprint(load_dataset(settings))
    program, _, _ = Case().build()
    batches = BatchSettings(settings, AugmentSettings(), 8, told)
    assert batches.source(program)
    save_arrays(here / "x.npz", classes=2)
    with pytest.raises(UserError, match="has other data under the paths of data .train"):
        batches.source(program)
