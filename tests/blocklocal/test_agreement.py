"""Lanes that agree every so many steps: what does not fit them is refused before the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocklocal.config import load_config
from learning.errors import UserError
from learning.settings import OuterSettings
from tests.blocklocal.helpers import SMALL, command, refused, sentence

EVERY = (*SMALL, "lanes.sync.every=8")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKLOCAL_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return tmp_path


def test_both_ways_of_agreeing_are_settings() -> None:
    assert load_config(None).lanes.sync == "step" and load_config(None).lanes.outer is None
    assert load_config(None, ["lanes.sync=step"]) == load_config(None)
    config = load_config(None, ["lanes.sync={every: 50, lr: 1.0}"])
    assert config.lanes.outer == OuterSettings(every=50, lr=1.0, momentum=0.9)
    assert load_config(None, ["lanes.sync.every=50", "lanes.sync.lr=1"]) == config
    assert load_config(None, ["lanes.sync.every=50", "lanes.sync=step"]) == load_config(None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lanes.sync=often"], "lanes.sync = 'often' is not possible: use step, or a section with"),
        (["lanes.sync.lr=1"], "lanes.sync.every is missing: set lanes.sync.every=..."),
        (["lanes.sync.every=0"], "lanes.sync.every = 0 is not possible: input should be greater"),
        (
            ["lanes.sync.every=2", "lanes.sync.momentum=1"],
            "lanes.sync.momentum = 1 is not possible",
        ),
        (["lanes.sync.every=2", "lanes.sync.sped=1"], "unknown setting lanes.sync.sped: did you"),
    ],
)
def test_wrong_settings_get_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.steps=41"], "the run ends after 41 (training.steps): set training.steps = 40 "),
        (["training.steps=null", "training.epochs=1"], "after 40 (training.epochs makes it)"),
        (["training.evaluate_every=12"], "evaluation every 12 (training.evaluate_every): set tr"),
        (["training.evaluate_every=null"], "evaluation every 40 (an epoch): set training.evaluate"),
        (["checkpoints.every=3"], "every 3 (checkpoints.every): set checkpoints.every = 8 or an"),
        (["lanes.max=2", "training.shards=2"], "engine.kind = sequential has one lane, and with"),
    ],
)
def test_nothing_is_saved_where_lanes_differ(capsys: Capture, words: list[str], said: str) -> None:
    few = ["lanes.sync.every=7", "training.steps=56"] if "null" in words[0] else []
    text = refused(capsys, "train", *EVERY, *few, *words)
    assert said in text and "lanes.sync.every = " in text


def test_evaluations_after_the_end_do_not_matter(capsys: Capture) -> None:
    command(capsys, "train", *EVERY, "training.evaluate_every=99", "training.steps=8", "--dry-run")


def test_a_run_agrees_as_it_began(capsys: Capture) -> None:
    """And ends with the bits of an uninterrupted one, the outer state among them."""
    command(capsys, "train", *EVERY, "run.directory=whole")
    command(capsys, "train", *EVERY, "run.directory=part")
    for words in (["lanes.sync=step"], ["lanes.sync.every=4"], ["lanes.sync.lr=0.5"]):
        text = sentence(capsys, "train", "--resume", "part", *words)
        assert "part was made with lanes.sync." in text and "cannot go on with" in text
    command(capsys, "train", "--resume", "part", "--checkpoint", "32")
    for name in ("block1", "block2"):
        files = [
            Path(run, f"checkpoints/step-00000040{end}/{name}.safetensors")
            for run, end in (("whole", ""), ("part", ".1"))
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert b"outer.velocity.layer" in files[0].read_bytes()
