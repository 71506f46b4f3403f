"""Runs on tokens: trained, evaluated token by token, resumed, and refused where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import blocklocal
from blocklocal.config import make_config
from blocklocal.inference import evaluate_model, load_run
from blocklocal.preparation import prepare
from learning.data import ReversalSettings, load_dataset
from learning.errors import UserError
from orchestrator.events import Metrics
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Observer
from tests.blocklocal.helpers import UNTRACKED, command, metrics_of, refused
from tests.learning.helpers import assert_same_bits

Capture = pytest.CaptureFixture[str]

GPT = (
    "network.kind=gpt",
    "network.width=16",
    "network.depth=2",
    "network.heads=2",
    "blocks.at=[block2]",
    "rule.kind=backprop",
    "training.batch=8",
    "optimizer.lr=0.01",
)
TEXT = ("data.kind=text", "data.path=book.txt", "data.context=12")
REVERSAL = ("data.kind=reversal", "data.length=4", "data.symbols=3", "data.rows=80")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory that holds a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("she sells sea shells by the sea shore. " * 50)
    return tmp_path


def test_a_text_is_learned_and_evaluated(capsys: Capture, here: Path) -> None:
    words = [*UNTRACKED, *GPT, *TEXT, "training.evaluate_every=20"]
    command(capsys, "train", *words, "run.directory=whole", "training.steps=40")
    train = [r for r in metrics_of(here / "whole") if r["split"] == "train"]
    assert train[0]["block2/loss"] == pytest.approx(torch.tensor(12.0).log().item(), abs=0.1)
    last = [r for r in metrics_of(here / "whole") if r["split"] == "test"][-1]
    assert last["block2/accuracy"] > 0.6

    run = RunDirectory.open(here / "whole")
    config, dataset, trained = load_run(run, 40)
    model = trained.model
    loss, accuracy = evaluate_model(model, dataset, "test", config)
    assert loss == pytest.approx(last["block2/loss"], rel=1e-5)
    assert accuracy == pytest.approx(last["block2/accuracy"])
    assert dataset.target_shape == (12,) and str(config.data.path) == str(here / "book.txt")


def test_loss_and_accuracy_are_means_over_tokens() -> None:
    dataset = load_dataset(ReversalSettings(length=4, symbols=3, rows=80))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(3, 8), nn.Linear(8, 3)).eval()
    config = make_config({"training": {"evaluation_batch": 3, "batch": 8}})
    loss, accuracy = evaluate_model(model, dataset, "test", config)
    x, y = torch.from_numpy(dataset.test.x), torch.from_numpy(dataset.test.y.copy())
    scores = model(x)
    losses = [F.cross_entropy(scores[n, t], y[n, t]) for n in range(8) for t in range(4)]
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    right = [int(scores[n, t].argmax()) == int(y[n, t]) for n in range(8) for t in range(4)]
    assert accuracy == pytest.approx(sum(right) / 32)


class _Stop(Observer):
    """Presses Ctrl-C after step 5 was recorded."""

    def stepped(self, step: int, metrics: Metrics) -> None:
        if step == 5:
            raise KeyboardInterrupt


def test_fit_trains_on_tokens_and_goes_on_with_the_same_bits(here: Path) -> None:
    dataset = load_dataset(ReversalSettings(length=4, symbols=3, rows=80))

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(3, 8), nn.Dropout(0.1), nn.Linear(8, 3))

    def sections(name: str) -> dict[str, Any]:
        return {
            "blocks": ["2"],
            "rule": "backprop",
            "training": {"steps": 9, "batch": 8, "evaluate_every": 3},
            "engine": {"kind": "sequential", "resources": {"threads": 1}},
            "tracking": {"enabled": False},
            "run": {"directory": here / name},
        }

    whole = blocklocal.fit(network(), dataset, **sections("whole"))
    assert whole.metrics["test/block2/loss"] < 1.5
    with pytest.raises(KeyboardInterrupt):
        blocklocal.fit(network(), dataset, observers=[_Stop()], **sections("stopped"))
    again = blocklocal.fit(network(), dataset, resume=here / "stopped")
    assert_same_bits(again.model.state_dict(), whole.model.state_dict())


def test_a_network_without_a_score_for_each_token_is_refused() -> None:
    dataset = load_dataset(ReversalSettings(length=4, symbols=3, rows=80))
    model = nn.Sequential(nn.Embedding(3, 8), nn.Flatten(), nn.Linear(32, 3))
    config = make_config({"training": {"batch": 8}, "blocks": {"at": ["2"]}})
    said = r"output of shape \(3,\) for labels of shape \(4,\) of 3 classes: end it with 3 scores"
    with pytest.raises(UserError, match=said):
        prepare(config, model=model, dataset=dataset)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*GPT, *TEXT, "network.causal=false"), "network.causal = false sees the characters that"),
        ((*GPT, *REVERSAL), "network.causal = true cannot see the end of a row, with which its"),
        ((*GPT,), "network.kind = gpt reads tokens, not numbers of shape (1, 8, 8): use data.kind"),
        (TEXT, "network.kind = mlp reads numbers, but the rows of these data are 12 tokens each"),
        ((*GPT, *TEXT, "data.normalize=false"), "data.kind = text has no setting normalize: leave"),
        ((*GPT, *TEXT, "data.augment.flip=true"), "augment works on images (C, H, W), not on rows"),
        ((*GPT, *TEXT, "data.path=no.txt"), "cannot read no.txt (No such file or directory): give"),
        ((*GPT, *TEXT, "network.tied=true"), "head.unembed.weight in block 2 is the same tensor"),
        (
            ("network.kind=resnet", "network.preset=resnet18", "network.block=bottleneck"),
            "network.block = bottleneck is not that of network.preset = resnet18, basic: leave one",
        ),
    ],
)
def test_runs_that_cannot_start(capsys: Capture, words: tuple[str, ...], said: str) -> None:
    assert refused(capsys, "train", *UNTRACKED, *words).startswith(said)


def test_tied_embeddings_train_in_one_block(capsys: Capture, here: Path) -> None:
    tied = [*GPT, "network.tied=true", "blocks.at=auto", "blocks.count=1", "training.steps=4"]
    words = [*UNTRACKED, *tied, *TEXT, "run.directory=tied"]
    command(capsys, "train", *words)
    model = load_run(RunDirectory.open(here / "tied"), 4)[2].model
    assert model[0].tokens.weight is model[-1].unembed.weight
    fresh = prepare(make_config(RunDirectory.open(here / "tied").config)).model
    assert not torch.equal(fresh[0].tokens.weight, model[0].tokens.weight)
