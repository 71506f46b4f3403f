"""Momentum auxiliary networks: the moving average step by step, its ends, and the last block."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.learners.publishing import Reading
from learning.objectives.base import Told
from learning.objectives.momentum import MomentumClassifier
from learning.rules import Local, MomentumAuxiliary
from tests.learning.helpers import (
    assert_same_bits,
    batch_of,
    gradients_of,
    model_state,
    shards_of,
    train,
)
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random, tokens_of

Y = torch.tensor([0, 2, 1, 2, 0])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_loss_by_hand():
    """Head on LB(h) + E(h); the gradient goes through both to h, but E has none."""
    head, unit, bias = nn.Linear(6, 3), nn.Linear(4, 6), nn.Linear(4, 6)
    objective = MomentumClassifier(head, unit, bias, 0.9).double()
    h = random(5, 4)
    assessment, gradient = assessed(objective, h, Told(Y))
    h, e = h.requires_grad_(), objective.average
    y = h @ (bias.weight + e.weight).T + bias.bias + e.bias
    expected = F.cross_entropy(head(y), Y, reduction="sum")
    torch.testing.assert_close(assessment.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, h)[0])
    assert not any(p.requires_grad for p in e.parameters())
    assert e.weight is not unit.weight and torch.equal(e.weight.float(), unit.weight)


def test_the_average_moves_by_hand():
    objective = MomentumClassifier(nn.Linear(6, 3), nn.Linear(4, 6), nn.Linear(4, 6), 0.75)
    before = objective.average.weight.clone()
    told = {"weight": torch.randn(6, 4), "bias": torch.randn(6)}
    objective.take(told)
    torch.testing.assert_close(objective.average.weight, 0.75 * before + 0.25 * told["weight"])


def averages(engine) -> list[Tensor]:
    return [b.objective.average.weight.detach().clone() for b in engine.blocks[:-1]]


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_over_steps(every):
    """At step t, t-1 a multiple of `every`, it takes the weights of the start of step t-1."""
    engine = engine_of(MomentumAuxiliary(momentum=0.9, every=every))
    weights = [model_state(engine)["1.0.weight"]]  # of block 2's first unit, by step
    expected = weights[0].clone()
    torch.testing.assert_close(averages(engine)[0], expected, rtol=0, atol=0)
    for step in range(7):
        train(engine, range(step, step + 1), shards_of())
        weights.append(model_state(engine)["1.0.weight"])
        published = step - 1
        if published > 0 and published % every == 0:
            kept = 0.9**every
            expected = kept * expected + (1 - kept) * weights[published]
        torch.testing.assert_close(averages(engine)[0], expected, rtol=1e-12, atol=1e-13)
    assert not torch.equal(weights[0], weights[-1])


def test_with_momentum_one_it_stays_and_with_zero_it_follows():
    for momentum, age in ((1.0, None), (0.0, 1)):
        engine = engine_of(MomentumAuxiliary(momentum=momentum))
        states = [model_state(engine)["1.0.weight"]]
        for step in range(4):
            train(engine, range(step, step + 1), shards_of())
            states.append(model_state(engine)["1.0.weight"])
        expected = states[0] if age is None else states[3 - age]
        torch.testing.assert_close(averages(engine)[0], expected, rtol=0, atol=1e-15)


def test_gradients_by_hand():
    engine = engine_of(MomentumAuxiliary())
    x, y = batch_of(0)
    block = engine.blocks[0]
    objective = copy.deepcopy(block.objective)
    chain = copy.deepcopy(block.chain)
    h = chain(x)
    scores = objective.head(objective.bias(h) + objective.average(h))
    inputs = {
        "0.0.weight": chain.units[0].weight,
        "auxiliary.bias.weight": objective.bias.weight,
        "auxiliary.head.linear.weight": objective.head.linear.weight,
    }
    wanted = torch.autograd.grad(F.cross_entropy(scores, y), list(inputs.values()))
    got = gradients_of(engine, 0, shards_of())[1]
    for name, gradient in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(got[name], gradient)
    assert not any("average" in name for name in got)


def test_the_learnable_bias_has_weights_of_its_own():
    first = engine_of(MomentumAuxiliary()).blocks[0].objective
    assert first.bias.weight.shape == first.average.weight.shape
    assert not torch.equal(first.bias.weight, first.average.weight)


def test_before_a_lone_head_it_is_local():
    """Block 2's head reads its output where block 3 is nothing but the network's head."""
    states = []
    for rule in (MomentumAuxiliary(), Local()):
        engine = engine_of(rule, at=("1.0", "3"))
        train(engine, range(4), shards_of())
        states.append(model_state(engine))
    for name in ("1.0.weight", "2.0.weight", "3.weight"):
        # Block 1 differs, so block 2's inputs do; with one block before the head nothing does.
        assert not torch.equal(states[0][name], states[1][name])
    states = []
    for rule in (MomentumAuxiliary(), Local()):
        engine = engine_of(rule, at=("3",))
        train(engine, range(4), shards_of())
        states.append(model_state(engine))
    assert_same_bits(*states)


def test_a_unit_without_weights_is_no_pattern():
    states = []
    for rule in (MomentumAuxiliary(), Local()):
        engine = engine_of(rule, at=("1.1",))  # block 2 starts with a tanh
        train(engine, range(4), shards_of())
        states.append(model_state(engine))
    assert_same_bits(*states)


def test_who_reads_whose_weights():
    rule = MomentumAuxiliary(every=3)
    assert list(rule.readings(4)) == [Reading(k, k + 1, 0, 3) for k in (1, 2, 3)]


def test_batch_norm_in_the_average_keeps_statistics_of_its_own():
    engine = engine_of(MomentumAuxiliary(), norms(), ("1", "2"))
    average = engine.blocks[0].objective.average
    train(engine, range(3), shards_of())
    assert average.norm.running_mean.abs().min() > 0
    assert average.norm.num_batches_tracked == 3


class Layer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(size, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x)))


def norms() -> nn.Sequential:
    return nn.Sequential(Layer(4), Layer(6), Layer(6), nn.Linear(6, 3))


def test_weights_are_saved_until_they_are_taken():
    """Nothing is published at step 3; what step 2 published is taken then."""
    block = engine_of(MomentumAuxiliary(every=2)).blocks[1]
    block.publish(2)
    block.update(2)
    assert [post.key.step for post in block.in_flight.from_step(3)] == [2]
    block.update(3)
    assert not block.in_flight.state_dict()


def test_tokens():
    engine = engine_of(MomentumAuxiliary(), shape=(5, 4), target_shape=(5,))
    train(engine, range(2), tokens_of())


@pytest.mark.parametrize("every", [1, 2])
def test_state_goes_on(every):
    def make(seed: int):
        torch.manual_seed(seed)
        rule = MomentumAuxiliary(momentum=0.5, every=every)
        return engine_of(rule, norms(), ("1", "2"), seed=seed)

    assert_goes_on(make)
