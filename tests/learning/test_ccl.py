"""Counter-current learning: its loss by hand, who learns from it, and its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learning.learners.feedback import FeedbackSettings
from learning.objectives.base import Told
from learning.objectives.countercurrent import CounterCurrent
from learning.objectives.readout import LatentSettings
from learning.objectives.tables import CosineLoss
from learning.rules import CounterCurrentLearning
from learning.rules.ccl import PoolingSettings
from tests.learning.helpers import batch_of, gradients_of, mlp, shards_of, train
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random, tokens_of

Y = torch.tensor([0, 2, 1, 2, 0])
PLAIN = PoolingSettings(normalization="none")


def by_hand(a: list[list[float]], rows: list[list[float]], y: list[int]) -> float:
    """The mean over samples and labels, the sum written out, in plain Python."""

    def cosine(u: list[float], v: list[float]) -> float:
        return sum(p * q for p, q in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)

    terms = [
        (cosine(a[i], rows[label]) - (y[i] == label)) ** 2
        for i in range(len(y))
        for label in range(len(rows))
    ]
    return sum(terms) / len(y) / len(rows)


def loss_of(a: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """The same with tensors."""
    a = a / a.norm(dim=-1, keepdim=True)
    b = rows / rows.norm(dim=-1, keepdim=True)
    return (a @ b.T - (y[:, None] == torch.arange(len(rows))).to(a.dtype)).square().mean()


def test_the_loss_by_hand():
    a, rows = random(5, 4), random(3, 4, seed=1)
    table = {"b": rows[..., None], "c": torch.zeros(3, dtype=torch.float64)}
    loss, scores = CosineLoss()(a[..., None], table, Y)
    assert float(loss) / 5 == pytest.approx(by_hand(a.tolist(), rows.tolist(), Y.tolist()))
    torch.testing.assert_close(loss / 5, loss_of(a, rows, Y))
    torch.testing.assert_close(scores, torch.cosine_similarity(a[:, None], rows[None], dim=-1))


def test_how_often_a_label_is_in_the_batch_does_not_weigh_its_row():
    """As in the authors' code: a sample meets the row of every label, in the batch or not."""
    a, rows = random(1, 4), random(4, 4, seed=1)
    loss, _ = CosineLoss()(a[..., None], {"b": rows[..., None]}, torch.tensor([2]))
    often = torch.tensor([2, 2, 2])
    thrice, _ = CosineLoss()(a.expand(3, -1)[..., None], {"b": rows[..., None]}, often)
    torch.testing.assert_close(thrice, 3 * loss)
    rows = rows.requires_grad_()
    loss, _ = CosineLoss()(random(5, 4)[..., None], {"b": rows[..., None]}, Y)
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient.abs().amax(1).min() > 0  # the row of label 3 too, which no sample has


def test_the_block_learns_against_a_constant_table():
    objective = CounterCurrent(LatentSettings(normalization="none"), (4,)).double()
    h, rows = random(5, 4), random(3, 4, seed=1).requires_grad_()
    table = {"b": rows[..., None].detach(), "c": torch.zeros(3, dtype=torch.float64)}
    assessment, gradient = assessed(objective, h, Told(Y, table))
    h = h.requires_grad_()
    torch.testing.assert_close(gradient / 5, torch.autograd.grad(loss_of(h, rows, Y), h)[0])
    assert assessment.readout is not None
    assert torch.equal(assessment.readout["a"][..., 0], h.detach())


@pytest.mark.parametrize("kind", ["chain", "direct"])
def test_both_networks_learn_from_the_same_loss(kind):
    """In lockstep: the block's gradient and the module's are those of one loss, by hand."""
    feedback = FeedbackSettings(kind=kind, delay=0)
    engine = engine_of(CounterCurrentLearning(pooling=PLAIN, feedback=feedback))
    x, y = batch_of(0)
    modules = {k: f.module for k, f in engine.feedback.items()}
    tables = {2: modules[2](None)}
    tables[1] = modules[1](tables[2].detach() if kind == "chain" else None)
    wanted: dict[int, Tensor] = {}
    rows: dict[int, Tensor] = {}
    for k, block in enumerate(engine.blocks[:-1], start=1):
        x = block.chain(x.detach())
        loss = loss_of(x, tables[k][..., 0], y)
        layer = modules[k].layers[-1].weight
        wanted[k], rows[k] = torch.autograd.grad(loss, (block.chain.units[0].weight, layer))
    learned: dict[int, dict[str, Tensor]] = {1: {}, 2: {}}
    for k, learner in engine.feedback.items():
        learner.updater.observer = lambda g, into=learned[k]: into.update(
            {n: t.clone() for n, t in g.items()}
        )
    got = gradients_of(engine, 0, shards_of())
    for k, first in ((1, "0.0.weight"), (2, "1.0.weight")):
        torch.testing.assert_close(got[k][first], wanted[k])
        torch.testing.assert_close(
            learned[k][f"layers.{len(modules[k].layers) - 1}.weight"], rows[k]
        )
        assert "bias" not in learned[k]  # the label bias has no part in it


def test_tokens_are_samples_of_the_mean():
    objective = CounterCurrent(
        LatentSettings(normalization="none"), (5, 4), per_token=True
    ).double()
    y = torch.arange(20).view(4, 5) % 3
    h, rows = random(4, 5, 4), random(3, 4, seed=1)
    table = {"b": rows[..., None], "c": torch.zeros(3, dtype=torch.float64)}
    assessment, _ = assessed(objective, h, Told(y, table))
    torch.testing.assert_close(assessment.loss / 4, loss_of(h.flatten(0, 1), rows, y.flatten()))
    assert assessment.scores.shape == (4, 5, 3)


def test_shards_add_up_to_the_batch():
    """The loss is a sum over samples: the same gradients from one shard and from two."""
    rule = CounterCurrentLearning(pooling=PLAIN)
    whole, halves = (
        gradients_of(engine_of(rule, shards=shards), 0, shards_of(shards)) for shards in (1, 2)
    )
    for k in (1, 2, 3):
        for name, gradient in whole[k].items():
            torch.testing.assert_close(halves[k][name], gradient)


@pytest.mark.parametrize("tokens", [False, True])
def test_both_networks_get_better(tokens):
    options = {"shape": (5, 4), "target_shape": (5,)} if tokens else {}
    engine = engine_of(CounterCurrentLearning(pooling=PLAIN), **options)
    shard = (tokens_of() if tokens else shards_of())(0, 0)
    history = train(engine, range(30), lambda step, i: shard)
    for name in ("block1", "block2", "feedback1", "feedback2"):
        assert history[-1][name]["loss"] < 0.8 * history[0][name]["loss"]


@pytest.mark.parametrize("delay", [0, 2])
def test_state_goes_on(delay):
    rule = CounterCurrentLearning(feedback=FeedbackSettings(delay=delay, hidden=5))
    assert_goes_on(lambda seed: engine_of(rule, mlp(seed), seed=seed))
