"""A run may be made longer where no step depends on how many follow: with the bits of one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blocklocal import UserError, fit
from blocklocal.config import make_config
from blocklocal.identity import fixed_length
from learning.settings import ConstantSchedule
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, blobs, command, metrics_of, refused
from tests.orchestrator.engines import Case, inline_engine, snapshot_of
from tests.orchestrator.test_engine_exactness import CASES

pytestmark = pytest.mark.usefixtures("no_fsync")
Capture = pytest.CaptureFixture[str]


def _trained(case: Case, steps: range, state: dict | None = None) -> dict:
    """The state after `steps` of a run that ends there."""
    calendar = Calendar({}, frozenset({steps.stop - 1}), {"validation": 2, "test": 3})
    with inline_engine(replace(case, steps=steps.stop)) as engine:
        if state is not None:
            engine.load(state, steps.start)
        return snapshot_of(list(engine.train(steps, calendar)), steps.stop - 1).state


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_and_ten_more_have_the_bits_of_twenty(name: str) -> None:
    """Of every rule; those of which it is not true are those that are refused."""
    case = replace(CASES[name], schedule=ConstantSchedule())
    if case.precision.compute == "float64":
        case = replace(case, precision=case.precision.model_copy(update={"compute": "float32"}))
    whole = _trained(case, range(20))
    longer = _trained(case, range(10, 20), _trained(case, range(10)))
    same = all(torch.equal(t, longer[k][n]) for k, s in whole.items() for n, t in s.items())
    config = make_config({"rule": case.rule.model_dump(mode="json")})
    assert same == (fixed_length(config) is None)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 4))


def _sections(run: Path, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "blocks": ["3"],
        "training": {"batch": 32, "steps": steps, "evaluate_every": 5},
        "engine": {"kind": "sequential", "resources": {"threads": 1}},
        "tracking": {"enabled": False},
        "run": {"directory": run},
        **more,
    }


def test_fit_trains_a_finished_run_longer(tmp_path: Path) -> None:
    whole = fit(_network(), blobs(), **_sections(tmp_path / "whole", 20))
    first = fit(_network(), blobs(), **_sections(tmp_path / "first", 10))
    before = {n: t.clone() for n, t in first.model.state_dict().items()}
    path = first.directory
    longer = fit(_network(), blobs(), resume=path, training={"steps": 20})
    run = RunDirectory.open(path)
    assert run.state.status == "finished" and run.state.steps == 20
    assert longer.metrics == whole.metrics
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, longer.model.state_dict()[name])
    assert any(not torch.equal(t, before[n]) for n, t in longer.model.state_dict().items())
    states = [RunDirectory.open(p).checkpoints.load(20).state for p in (path, whole.directory)]
    for learner, tensors in states[0].items():
        assert all(torch.equal(t, states[1][learner][name]) for name, t in tensors.items())
    # The test split after step 10 stays told; all else is what one run of 20 steps tells.
    extra = [m for m in metrics_of(path) if m not in metrics_of(whole.directory)]
    assert [(m["step"], m["split"]) for m in extra] == [(9, "test")]
    assert run.config["training"]["steps"] == 20
    fit(_network(), blobs(), resume=path)  # and nothing has to be said again


def test_the_command_trains_a_finished_run_longer(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command(capsys, "train", *SMALL, "training.steps=8", "run.directory=run")
    assert "at step 8 of 16" in command(capsys, "train", "--resume", "run", "training.steps=16")
    assert "at step 16 of 16" in command(capsys, "train", "--resume", "run")
    said = refused(capsys, "train", "--resume", "run", "training.steps=8")
    assert "has finished 16 steps and training.steps = 8 are fewer" in said
    # From an earlier checkpoint fewer are possible.
    words = ["--checkpoint", "8", "training.steps=12"]
    assert "at step 8 of 12" in command(capsys, "train", "--resume", "run", *words)
    said = refused(capsys, "train", "--resume", "run", "training.epochs=9")
    assert said == "training.steps = 12 wins over training.epochs: set training.steps instead"


def test_epochs_count_as_well(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["training.steps=null", "training.batch=400", "training.epochs=2", "run.directory=run"]
    command(capsys, "train", *SMALL, *words)
    assert "at step 6 of 9" in command(capsys, "train", "--resume", "run", "training.epochs=3")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"schedule": {"kind": "cosine"}}, "schedule.kind = cosine counts in shares of all steps"),
        ({"schedule": {"kind": "multi-step"}}, "schedule.kind = multi-step counts in shares of"),
        ({"rule": {"kind": "bll", "bootstrap": {"share": 0.5}}}, "rule.bootstrap.until is a share"),
        ({"rule": {"kind": "reconcile"}}, "rule.warmup is a share of all steps"),
    ],
)
def test_where_steps_depend_on_how_many_follow_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(_network(), blobs(), **_sections(Path("run"), 5, **more))
    files = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        fit(_network(), blobs(), resume="run", training={"steps": 10})
    said = str(caught.value)
    assert "training.steps = 5 and cannot go on with 10, because " + why in said
    assert files == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    # What the sentence says works.
    again = said.partition("from its last checkpoint: ")[2]
    assert again.startswith("fit(model, data, run={'start': '")
    start = RunDirectory.open("run").checkpoints.storage.at()
    sections = _sections(Path("next"), 10, **more)
    result = fit(_network(), blobs(), **{**sections, "run": {"directory": "next", "start": start}})
    assert [m["step"] for m in metrics_of(result.directory) if m["split"] == "train"] == [
        *range(5, 10)
    ]


def test_what_a_refusal_says_works(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["training.steps=8", "schedule.kind=cosine", "run.directory=run"]
    command(capsys, "train", *SMALL, *words)
    for key, value in (("training.steps", "16"), ("optimizer.lr", "0.5")):
        said = refused(capsys, "train", "--resume", "run", f"{key}={value}")
        assert said.count("=") < 9 and f"{key} = " in said and f"cannot go on with {value}" in said
        again = said.partition("from its last checkpoint: blocklocal ")[2].split()
        again = [word.replace("...", "16") for word in again]
        command(capsys, *again, f"run.directory={key}")
        assert [m["step"] for m in metrics_of(Path(key)) if m["split"] == "train"] == [
            *range(8, 16)
        ]
