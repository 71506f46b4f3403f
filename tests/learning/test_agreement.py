"""The cosine between a rule's updates and backprop's: oracles, by hand, no side effects."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learning.agreement import agreement
from learning.rules import BLL, Backprop, DelayedGradients, Interlocking, Local, Rule
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings
from tests.learning.helpers import (
    assert_same_state,
    batch_of,
    learner_settings,
    make_engine,
    mlp,
    shards_of,
    snapshot,
    train,
)


def engine_of(rule: Rule, at: tuple[str, ...] = ("1", "2"), shards: int = 1) -> SequentialEngine:
    settings = learner_settings(batch=8, shards=shards, optimizer=AdamWSettings(lr=0.01))
    return make_engine(rule, mlp(0, dropout=0.3), list(at), x=batch_of(0)[0], settings=settings)


@pytest.mark.parametrize("shards", [1, 2])
def test_backprop_agrees_with_itself(shards: int) -> None:
    engine = engine_of(Backprop(), shards=shards)
    for step in range(2):
        found = agreement(engine, step, shards_of(shards))
        assert found == {f"block{k}": pytest.approx(1.0, abs=1e-12) for k in (1, 2, 3)}
        train(engine, range(step, step + 1), shards_of(shards))


@pytest.mark.parametrize("rule", [Local(), BLL(), Interlocking(reach=2)])
def test_one_block_is_backprop(rule: Rule) -> None:
    assert agreement(engine_of(rule, at=()), 0, shards_of()) == {"block1": pytest.approx(1.0)}


def test_the_blocks_that_the_task_loss_reaches_agree() -> None:
    found = agreement(engine_of(Interlocking(reach=2)), 0, shards_of())
    assert [found["block2"], found["block3"]] == pytest.approx([1.0, 1.0])
    assert -1 < found["block1"] < 0.999


def test_by_hand() -> None:
    """Block 1's gradient through its own head, and through block 2, taken with plain autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    x, y = batch_of(0)
    engine = make_engine(Local(), model, ["1"], x=x, settings=learner_settings(batch=8))
    model = model.double()
    objective = engine.blocks[0].objective
    assert objective is not None
    head = next(m for m in objective.modules() if isinstance(m, nn.Linear))
    own = list(model[0].parameters())
    true = torch.autograd.grad(F.cross_entropy(model(x), y), own)
    local = torch.autograd.grad(F.cross_entropy(head(model[0](x)), y), own)
    product = sum(float((a * b).sum()) for a, b in zip(local, true, strict=True))
    norms = [math.sqrt(sum(float((g * g).sum()) for g in grads)) for grads in (local, true)]
    found = agreement(engine, 0, shards_of())
    assert found["block1"] == pytest.approx(product / (norms[0] * norms[1]), rel=1e-12)
    assert found["block2"] == pytest.approx(1.0)


@pytest.mark.parametrize("rule", [Local(), BLL(), DelayedGradients(), Backprop()])
def test_the_engine_stays_as_it_is(rule: Rule) -> None:
    engine, undisturbed = engine_of(rule), engine_of(rule)
    for step in range(4):
        before, random = snapshot(engine), torch.random.get_rng_state()
        agreement(engine, step, shards_of())
        assert_same_state(snapshot(engine), before)
        assert torch.equal(torch.random.get_rng_state(), random)
        for one in (engine, undisturbed):
            train(one, range(step, step + 1), shards_of())
    assert_same_state(snapshot(engine), snapshot(undisturbed))


def test_delayed_gradients_are_absent_at_first() -> None:
    """The gradient reaches block k in step K-k; until then it has no update to compare."""
    engine = engine_of(DelayedGradients())
    seen = []
    for step in range(3):
        seen.append(set(agreement(engine, step, shards_of())))
        train(engine, range(step, step + 1), shards_of())
    assert seen == [{"block3"}, {"block2", "block3"}, {"block1", "block2", "block3"}]


def test_a_gradient_of_zero_is_absent() -> None:
    engine = engine_of(Local())
    x, y = batch_of(0)
    objective = engine.blocks[0].objective
    assert objective is not None
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()  # a head of zeros passes no gradient back
    assert "block1" not in agreement(engine, 0, lambda step, shard: (x, y))
