"""Runs whose checkpoints lie elsewhere train, go on, are evaluated and exported as any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from blocklocal import cli
from blocklocal.observers import Progress
from orchestrator.events import Metrics
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, command, listing, metrics_of, refused, state_of

Capture = pytest.CaptureFixture[str]
WORDS = (*SMALL, "training.steps=12", "training.evaluate_every=6", "run.name=n")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_run_with_its_checkpoints_elsewhere(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, resumed, evaluated and exported, it equals one with its checkpoints at home."""
    more = ["checkpoints.every=4", "checkpoints.keep=3"]
    command(capsys, "train", *WORDS, *more, "run.directory=home")

    def stop(self: Progress, step: int, metrics: Metrics) -> None:
        if step == 9:
            raise KeyboardInterrupt

    location = f"checkpoints.storage=file://{tmp_path}/store"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "stepped", stop)
        assert cli.main(["train", *WORDS, *more, location, "run.directory=away"]) == 130
    capsys.readouterr()
    store = tmp_path / "store" / "n"
    files = {"index.json", "owner", "step-00000004", "step-00000006", "step-00000008"}
    assert set(os.listdir(store)) == files and os.listdir("away/checkpoints") == []
    assert (store / "owner").read_text().strip() == state_of(Path("away"))["id"]
    assert "at step 8 of 12" in command(capsys, "train", "--resume", "away", "checkpoints.keep=1")
    assert metrics_of(Path("away")) == metrics_of(Path("home"))
    best = RunDirectory.open("away").checkpoints.best
    assert RunDirectory.open("away").checkpoints.steps() == sorted({best, 12})
    for words in (["eval", "--checkpoint", "last"], ["eval"]):
        assert command(capsys, *words, "away") == command(capsys, *words, "home")
    for name in ("away", "home"):
        command(capsys, "export", name, f"{name}.safetensors", "--checkpoint", "last")
    home = safetensors.torch.load_file("home.safetensors")
    for name, tensor in safetensors.torch.load_file("away.safetensors").items():
        assert torch.equal(tensor, home[name])


def test_a_relative_storage_is_the_same_from_everywhere(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(capsys, "train", *WORDS, "checkpoints.storage=store", "run.directory=r")
    run = tmp_path / "here" / "r"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["checkpoints"]["storage"] == str(tmp_path / "here" / "store")
    monkeypatch.chdir(tmp_path)
    assert "at step 12 of 12" in command(capsys, "train", "--resume", run)
    said = refused(capsys, "train", "--resume", run, "checkpoints.storage=store")
    assert said.startswith("checkpoints.storage = ") and "leave it out" in said


def test_another_run_of_the_same_name_is_refused(capsys: Capture, tmp_path: Path) -> None:
    words = ["train", *WORDS, "training.steps=1", f"checkpoints.storage={tmp_path}/store"]
    command(capsys, *words, "run.directory=one")
    before = listing(tmp_path)
    said = refused(capsys, *words, "run.directory=two")
    assert said.startswith(f"{tmp_path}/store/n holds the checkpoints of another run (")
    assert listing(tmp_path) == before
    command(capsys, *words, "run.directory=two", "run.name=m")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("checkpoints.storage=foo://x", "cannot open checkpoints.storage = foo://x ("),
        ("checkpoints.storage=/dev/null/x", "cannot "),
        ("checkpoints.storage=s3://k:secret@b/p", "checkpoints.storage holds a secret"),
        ("checkpoints.keep=0", "checkpoints.keep = 0 is not possible"),
        ("checkpoints.every=0", "checkpoints.every = 0 is not possible"),
    ],
)
def test_bad_settings(capsys: Capture, word: str, said: str) -> None:
    text = refused(capsys, "train", *WORDS, word, "run.directory=r")
    assert text.startswith(said) and ":secret" not in text
