"""Overlapping blocks and BackLink, by hand: whose loss reaches which units of which block."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.build import Program
from learning.rules import BackLink, Local, Overlapping, Rule
from learning.sequential import SequentialEngine
from learning.settings import SGDSettings
from learning.units import units_of
from tests.learning.helpers import (
    assert_close,
    assert_same_state,
    batch_of,
    gradients_of,
    learner_settings,
    make_engine,
    mlp,
    named_like,
    parts_of,
    shards_of,
    snapshot,
    train,
)

MOMENTUM = SGDSettings(lr=0.2)


def engine_of(rule: Rule, at: tuple[str, ...] = ("1.0", "2.0"), **settings) -> SequentialEngine:
    settings = learner_settings(batch=8, **settings)
    return make_engine(rule, mlp(0), at, x=batch_of(0)[0], settings=settings)


def losses_from(parts, k: int, h: Tensor, y: Tensor) -> list[Tensor]:
    """The mean losses of blocks k, k+1, ... in one graph that starts at block k's input."""
    losses = []
    for chain, head in parts[k - 1 :]:
        h = chain(h)
        losses.append(F.cross_entropy(h if head is None else head(h), y))
    return losses


def outputs(parts, x: Tensor) -> list[Tensor]:
    """The input of each block, detached."""
    inputs = [x]
    for chain, _ in parts:
        inputs.append(chain(inputs[-1]).detach())
    return inputs[:-1]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_overlapping_by_hand(weight, shards):
    """Block k learns from l_k + weight * l_(k+1); a head from its own loss with weight one."""
    engine = engine_of(Overlapping(weight=weight), shards=shards)
    parts, (x, y) = parts_of(engine), batch_of(0)
    got = gradients_of(engine, 0, shards_of(shards))
    for k, (h, (chain, head)) in enumerate(zip(outputs(parts, x), parts, strict=True), start=1):
        own, *later = losses_from(parts, k, h, y)
        total = own + weight * later[0] if later else own
        parameters = list(chain.parameters())
        expected = named_like(chain, torch.autograd.grad(total, parameters, retain_graph=True))
        if head is not None:
            expected |= named_like(head, torch.autograd.grad(own, list(head.parameters())))
        assert_close(got[k], expected)


def test_the_next_loss_reaches_only_the_last_units():
    """Two blocks of four units; of block 1 the last two (one linear layer) see the task loss."""
    engine = engine_of(BackLink(units=2, weight=0.3), ("2.0",))
    parts, (x, y) = parts_of(engine), batch_of(0)
    got = gradients_of(engine, 0, shards_of())
    chain, head = parts[0]
    own, later = losses_from(parts, 1, x, y)
    parameters = list(chain.parameters())
    local = named_like(chain, torch.autograd.grad(own, parameters, retain_graph=True))
    linked = named_like(chain, torch.autograd.grad(own + 0.3 * later, parameters))
    own = F.cross_entropy(head(chain(x).detach()), y)
    expected = named_like(head, torch.autograd.grad(own, list(head.parameters())))
    for layer, gradients in (("0.0", local), ("1.0", linked)):
        expected |= {n: g for n, g in gradients.items() if n.startswith(layer)}
    assert_close(got[1], expected)
    assert (linked["0.0.weight"] - local["0.0.weight"]).abs().max() > 1e-4


def test_a_linked_loss_ends_in_the_block_before_it():
    """With three blocks, block 1 learns from l_1 and l_2 and never from l_3."""
    engine = engine_of(BackLink(units=9))
    parts, (x, y) = parts_of(engine), batch_of(0)
    got = gradients_of(engine, 0, shards_of())
    own, later, _ = losses_from(parts, 1, x, y)
    gradients = torch.autograd.grad(own + later, list(parts[0][0].parameters()))
    got[1] = {n: g for n, g in got[1].items() if not n.startswith("auxiliary")}
    assert_close(got[1], named_like(parts[0][0], gradients))


@pytest.mark.parametrize("units", [3, 50])
def test_linking_all_units_is_overlapping(units):
    """Block 3 has three units, the most of all."""
    states = []
    for rule in (BackLink(units=units, weight=0.3), Overlapping(weight=0.3)):
        engine = engine_of(rule, optimizer=MOMENTUM)
        train(engine, range(4), shards_of())
        states.append(snapshot(engine))
    assert_same_state(*states)


def test_linking_units_without_parameters_is_local_learning():
    states = []
    for rule in (BackLink(units=1), Local()):  # the last unit of blocks 1 and 2 is a tanh
        engine = engine_of(rule, optimizer=MOMENTUM)
        train(engine, range(4), shards_of())
        states.append(snapshot(engine))
    assert_same_state(*states)


def test_linking_counts_a_parameter_that_two_units_share_where_it_stands_first():
    """Units 0 and 2 are one layer: in the tail from unit 1 on, unit 1 learns from the next loss."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared, nn.Linear(4, 3))
    program = Program(BackLink(units=2), learner_settings(batch=8), ((4,), (3,)), 3)
    units = units_of(copy.deepcopy(model))
    engine = SequentialEngine(program, [units[:3], units[3:]])
    parts, (x, y) = parts_of(engine), batch_of(0)
    got = gradients_of(engine, 0, shards_of())
    own, later = losses_from(parts, 1, x, y)
    parameters = dict(parts[0][0].named_parameters())
    middle, first = parameters["units.1.weight"], parameters["units.0.weight"]
    (expected,) = torch.autograd.grad(own + later, middle, retain_graph=True)
    torch.testing.assert_close(got[1]["1.weight"], expected)
    torch.testing.assert_close(got[1]["0.weight"], torch.autograd.grad(own, first)[0])
