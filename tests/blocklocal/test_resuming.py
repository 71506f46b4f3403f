"""Going on with a run: from Python, from another checkpoint, from another directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from blocklocal import UserError, cli, fit
from blocklocal.observers import Progress
from orchestrator.events import Metrics
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Observer
from tests.blocklocal.helpers import (
    SMALL,
    blobs,
    command,
    listing,
    metrics_of,
    refused,
    save_arrays,
    state_of,
)

Capture = pytest.CaptureFixture[str]
WORDS = (*SMALL, "training.steps=12", "training.evaluate_every=4")


def _network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 4))


def _sections(run: Path) -> dict[str, Any]:
    return {
        "blocks": ["3"],
        "rule": "bll",
        "training": {"batch": 32, "steps": 12, "evaluate_every": 4},
        "engine": {"kind": "sequential", "resources": {"threads": 1}},
        "tracking": {"enabled": False},
        "run": {"directory": run},
        "data": {"augment": {"flip": False}},
    }


class _Stop(Observer):
    """Presses Ctrl-C after step 9 was recorded."""

    def stepped(self, step: int, metrics: Metrics) -> None:
        if step == 9:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Give a run of `fit` that was interrupted after step 9, with checkpoint 8."""
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(_network(), blobs(), observers=[_Stop()], **_sections(path))
    return path


def test_fit_goes_on_with_the_bits_of_an_undisturbed_run(tmp_path: Path, stopped: Path) -> None:
    whole = fit(_network(), blobs(), **_sections(tmp_path / "whole"))
    assert state_of(stopped)["status"] == "stopped"
    result = fit(_network(), blobs(), resume=stopped)
    assert result.directory == stopped and state_of(stopped)["status"] == "finished"
    assert metrics_of(stopped) == metrics_of(whole.directory)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    again = fit(_network(), blobs(), resume=stopped, checkpoint=12, **_sections(tmp_path / "x"))
    assert again.metrics == whole.metrics and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"optimizer": {"lr": 0.5}},
            "{run} was made with optimizer.lr = 0.001 and cannot go on with 0.5: leave it out, or ",
        ),
        (
            {"rule": "local"},
            "{run} was made with rule.kind = bll and cannot go on with local: leave it out, or ",
        ),
        (
            {"model": _network(width=9)},
            "unit 0 is Linear(in_features=8, out_features=9, bias=True) in this network and "
            "Linear(in_features=8, out_features=16, bias=True) in {run}: give the network of ",
        ),
        (
            {"model": nn.Sequential(nn.Linear(8, 16))},
            "unit 2 is missing in this network and 1 in plan ",
        ),
        ({"checkpoint": 5}, "there is no checkpoint 5 in "),
    ],
)
def test_fit_does_not_go_on_with_something_else(
    stopped: Path, arguments: dict[str, Any], said: str
) -> None:
    (stopped / "lock").touch()
    before = {k: v for k, v in listing(stopped).items() if k != "lock"}
    model = arguments.pop("model", None) or _network()
    with pytest.raises(UserError) as caught:
        fit(model, blobs(), resume=stopped, **arguments)
    assert str(caught.value).startswith(said.replace("{run}", str(stopped)))
    assert {k: v for k, v in listing(stopped).items() if k != "lock"} == before


def test_runs_go_on_where_they_were_made(
    capsys: Capture, tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "train", "--resume", stopped, "run.given=[]")
    assert said.startswith(f"{stopped} was trained in Python with data and network in memory: ")
    assert cli.main(["train", *WORDS, "training.steps=1", "run.directory=settings"]) == 0
    with pytest.raises(UserError, match="go on with blocklocal train --resume"):
        fit(_network(), blobs(), resume=tmp_path / "settings")


def test_what_was_given_is_not_recorded_as_defaults(stopped: Path) -> None:
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    assert "network" not in config and config["run"]["given"] == ["data", "network"]
    assert config["data"] == {"augment": {"flip": False, "crop": 0}}


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a run of 12 steps with checkpoint 4 and a damaged one at 12."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    words = ["training.steps=12", f"run.directory={path}"]
    assert cli.main(["train", *WORDS, *words]) == 0
    checkpoints = RunDirectory.open(path).checkpoints
    state = _checkpoint_of(tmp_path, 4)
    manifest, told = checkpoints.manifest(12), RunDirectory.open(path).fingerprints
    assert told is not None
    checkpoints.save(
        4,
        state,
        plan_hash=manifest.plan_hash,
        rule=manifest.rule,
        metrics=None,
        fingerprints=told.of(state),
        preprocessing=manifest.preprocessing,
    )
    file = path / "checkpoints" / "step-00000012" / "block1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    return path


def _checkpoint_of(directory: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """The state at `step` of a run that stops right after it."""

    class Stop(Progress):
        def stepped(self, step_: int, metrics: Metrics) -> None:
            super().stepped(step_, metrics)
            if step_ == step:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blocklocal.commands.train.Progress", Stop)
        assert cli.main(["train", *WORDS, f"run.directory={directory / 'other'}"]) == 130
    return RunDirectory.open(directory / "other").checkpoints.load(step).state


def test_a_damaged_checkpoint_that_was_named_changes_nothing(
    capsys: Capture, damaged: Path
) -> None:
    metrics = (damaged / "metrics.jsonl").read_bytes()
    said = refused(capsys, "train", "--resume", damaged, "--checkpoint", "12")
    assert "step-00000012/block1.safetensors" in said and "choose one of the steps 4" in said
    assert state_of(damaged)["status"] == "finished"
    assert (damaged / "metrics.jsonl").read_bytes() == metrics


def test_a_run_goes_on_from_the_one_before_a_damaged_last_one(
    capsys: Capture, damaged: Path
) -> None:
    metrics = metrics_of(damaged)
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(damaged)]) == 0
    said = capsys.readouterr()
    warning = "step-00000012/block1.safetensors is damaged (its xxh3_128 is not the manifest's): "
    assert said.err.startswith("blocklocal: warning: ") and said.err.count("\n") == 1
    assert said.err.endswith(f"{warning}checkpoint 12 is skipped\n")
    assert "at step 8 of 12" in said.out
    assert metrics_of(damaged) == metrics
    checkpoints = RunDirectory.open(damaged).checkpoints
    assert checkpoints.last == 12
    checkpoints.load(12)


def test_a_lost_last_checkpoint_is_told(capsys: Capture, damaged: Path) -> None:
    shutil.rmtree(damaged / "checkpoints" / "step-00000012")
    assert cli.main(["train", "--resume", str(damaged)]) == 0
    said = capsys.readouterr()
    assert "checkpoint 12, the last, is gone from " in said.err and "at step 8 of 12" in said.out


def test_a_run_without_any_whole_checkpoint_does_not_start_over(
    capsys: Capture, damaged: Path
) -> None:
    for path in (damaged / "checkpoints").glob("step-*/block1.safetensors"):
        path.write_bytes(b"")
    said = refused(capsys, "train", "--resume", damaged)
    assert said.startswith(f"no checkpoint of {damaged} is whole (")


def test_an_interruption_after_an_older_checkpoint_leaves_no_gap(
    capsys: Capture, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = metrics_of(damaged)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "stepped", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.main(["train", "--resume", str(damaged), "--checkpoint", "4"]) == 130
    assert "at step 4 of 12" in command(capsys, "train", "--resume", damaged)
    assert metrics_of(damaged) == metrics


def test_a_checkpoint_goes_with_resuming_only(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "train", *WORDS, "--checkpoint", "4")
    assert said == "--checkpoint goes with --resume only: give both or leave it out"


def test_relative_paths_of_data_hold_in_another_directory(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    save_arrays(Path("x.npz"))
    words = [*WORDS, "data.kind=arrays", "data.path=x.npz", "training.batch=8", "run.directory=r"]
    command(capsys, "train", *words)
    run = tmp_path / "a" / "r"
    assert RunDirectory.open(run).config["data"]["path"] == str(tmp_path / "a" / "x.npz")
    monkeypatch.chdir(tmp_path / "b")
    assert "at step 12 of 12" in command(capsys, "train", "--resume", run)
    assert "at step 12" in command(capsys, "train", "--resume", run, "data.path=../a/x.npz")
