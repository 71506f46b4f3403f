"""`run.start`: a run that begins with a checkpoint of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, command, metrics_of, refused

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(autouse=True)
def first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A run of 40 steps, of which it has kept the checkpoints of steps 32 and 40."""
    monkeypatch.chdir(tmp_path)
    command(capsys, "train", *SMALL, "run.directory=first")
    return tmp_path / "first"


def trained(run: str) -> list[int]:
    """The steps that a run has trained."""
    return [m["step"] for m in metrics_of(Path(run)) if m["split"] == "train"]


def test_the_same_settings_give_the_same_bits(
    capsys: pytest.CaptureFixture[str], first: Path
) -> None:
    """Where the first run went on, the second begins: both end alike."""
    checkpoints = RunDirectory.open(first).checkpoints
    assert 32 in checkpoints.steps()
    (copy,) = first.glob("checkpoints/step-00000032*")
    Path("start").mkdir()
    copy.rename(Path("start") / copy.name)
    command(capsys, "train", *SMALL, "run.start=start", "run.directory=second")
    assert metrics_of(Path("second")) == [m for m in metrics_of(first) if m["step"] >= 32]
    ends = [RunDirectory.open(p).checkpoints.load(40).state for p in (first, "second")]
    for learner, tensors in ends[0].items():
        assert all(torch.equal(t, ends[1][learner][name]) for name, t in tensors.items())


def test_other_settings_go_on_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run.start=first/checkpoints", "training.steps=48", "optimizer.lr=0.5"]
    command(capsys, "train", *SMALL, *words, "run.directory=second")
    assert trained("second") == [*range(40, 48)]
    config = RunDirectory.open("second").config
    assert config["run"]["start"] == str(Path("first/checkpoints").resolve())
    # Killed before its first checkpoint it begins there again.
    command(capsys, "train", "--resume", "second", "--checkpoint", "40")
    assert trained("second") == [*range(40, 48)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.start=nowhere"], "nowhere holds no checkpoint: name the checkpoints/ of a run"),
        ([], "is of step 40 and this run has 40: raise training.steps"),
        (["training.steps=80", "rule.kind=bll"], "is of rule.kind = local and this run has bll"),
        (["training.steps=80", "blocks.at=[layer3]"], "cut and train as that run did"),
        (["training.steps=80", "network.normalization=none"], "norm"),
    ],
)
def test_what_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    place = [] if words and words[0].startswith("run.start") else ["run.start=first/checkpoints"]
    text = refused(capsys, "train", *SMALL, *place, *words, "run.directory=second")
    assert said in text
