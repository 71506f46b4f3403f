"""Interlocking backpropagation is local learning at one end and backprop at the other."""

import pytest
import torch
from torch import nn

from learning.rules import Backprop, Interlocking, Local
from tests.learning.helpers import (
    assert_same_bits,
    batch_of,
    learner_settings,
    make_engine,
    model_state,
    shards_of,
    train,
)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers)


def trained(rule, steps: int = 4):
    engine = make_engine(
        rule, network(), ["2", "4"], x=batch_of(0)[0], settings=learner_settings(batch=8)
    )
    train(engine, range(steps), shards_of())
    return engine


@pytest.mark.parametrize(("reach", "other"), [(1, Local()), (3, Backprop()), (7, Backprop())])
def test_both_ends(reach, other):
    assert_same_bits(model_state(trained(Interlocking(reach=reach))), model_state(trained(other)))


def test_pairwise_is_neither_and_has_no_head_in_block_1():
    pairwise = trained(Interlocking())
    assert [b.objective is None for b in pairwise.blocks] == [True, False, False]
    for other in (Local(), Backprop()):
        state = model_state(trained(other))
        assert not torch.equal(model_state(pairwise)["0.weight"], state["0.weight"])


def test_pairwise_by_hand():
    """Block 1 gets the gradient of block 2's auxiliary loss, block 2 that of the task loss."""
    model, (x, y) = network().double(), batch_of(0)
    engine = make_engine(
        Interlocking(), network(), ["2", "4"], x=x, settings=learner_settings(batch=8)
    )
    head = engine.blocks[1].objective.head.linear
    h1 = torch.tanh(x @ model[0].weight.T + model[0].bias)
    h2 = torch.tanh(model[2](h1))
    auxiliary = nn.functional.cross_entropy(h2 @ head.weight.detach().T + head.bias.detach(), y)
    (first,) = torch.autograd.grad(auxiliary, model[0].weight, retain_graph=True)
    task = nn.functional.cross_entropy(model[4](h2), y)
    (second,) = torch.autograd.grad(task, model[2].weight)
    before = {name: t.clone() for name, t in model_state(engine).items()}
    train(engine, range(1), shards_of())
    after = model_state(engine)
    rate = learner_settings(batch=8).optimizer.lr
    torch.testing.assert_close((before["0.weight"] - after["0.weight"]) / rate, first)
    torch.testing.assert_close((before["2.weight"] - after["2.weight"]) / rate, second)
