"""An observer that ends a run early: what `fit` returns, and what the run says of itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blocklocal import Observer, StopTraining, UserError, fit
from learning.data import Dataset
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import model_state
from tests.blocklocal.helpers import blobs, state_of
from tests.learning.helpers import assert_same_bits


class StopsAfter(Observer):
    """Stops once so many checkpoints are complete, or at the first step for none."""

    def __init__(self, checkpoints: int, checkpoint: str | int = "last") -> None:
        self._left, self._checkpoint = checkpoints, checkpoint

    def stepped(self, step: int, metrics: Any) -> None:
        if self._left == 0:
            raise StopTraining(self._checkpoint)

    def saved(self, steps: int) -> None:
        self._left -= 1


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def _stopped(run: Path, observer: Observer, model: nn.Module, data: Dataset | None = None):
    training = {"batch": 32, "steps": 40, "evaluate_every": 4}
    return fit(
        model,
        data or blobs(),
        blocks=["2"],
        observers=[observer],
        training=training,
        checkpoints={"keep": 9},
        engine={"kind": "sequential", "resources": {"threads": 1}},
        tracking={"enabled": False},
        run={"directory": run},
    )


@pytest.mark.parametrize("which", ["last", "best", 4])
def test_a_stopped_run_ends_with_the_checkpoint_that_is_named(
    tmp_path: Path, which: str | int
) -> None:
    model = _network()
    result = _stopped(tmp_path / "run", StopsAfter(2, which), model)
    run = RunDirectory.open(tmp_path / "run")
    assert run.state.status == "stopped" and state_of(run.path)["error"] is None
    assert result.stopped and result.model is model and not model.training
    assert result.checkpoint == run.checkpoints.resolve(which)
    saved = run.checkpoints.load(result.checkpoint).state
    assert_same_bits(dict(model.state_dict()), model_state(saved))
    assert (run.path / "report.md").exists()


def test_before_the_first_checkpoint_the_weights_are_those_of_the_beginning(tmp_path: Path) -> None:
    model = _network()
    before = copy.deepcopy(model.state_dict())
    result = _stopped(tmp_path / "run", StopsAfter(0), model)
    assert result.stopped and result.checkpoint == 0
    assert_same_bits(dict(model.state_dict()), dict(before))
    assert state_of(tmp_path / "run")["status"] == "stopped"


def test_a_stopped_run_goes_on_to_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    data, never = blobs(), StopsAfter(-1)
    whole = _stopped(tmp_path / "whole", never, _network(), data)
    assert not whole.stopped and whole.checkpoint == 40
    _stopped(tmp_path / "run", StopsAfter(2), _network(), data)
    again = fit(_network(), data, resume=tmp_path / "run")
    assert not again.stopped and state_of(tmp_path / "run")["status"] == "finished"
    assert_same_bits(dict(again.model.state_dict()), dict(whole.model.state_dict()))


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint 3 in .* choose one of the steps"):
        _stopped(tmp_path / "run", StopsAfter(2, 3), _network())
