"""Reconciliation of gradients that are zero, tiny, too large or rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learning.errors import NonFiniteLossError
from learning.learners.reconciling import gradient_distance
from learning.rules import Reconciliation
from learning.settings import PrecisionSettings
from tests.learning.helpers import (
    assert_same_state,
    batch_of,
    convnet,
    learner_settings,
    make_engine,
    shards_of,
    snapshot,
    train,
)
from tests.learning.reconciling import DISTANCES, MOMENTUM, engine_of


@pytest.mark.parametrize("scale_free", [True, False])
def test_gradients_of_zero_have_finite_distances(scale_free):
    e = torch.zeros(3, 2, 2, dtype=torch.float64)
    e[2] = 1.0
    e.requires_grad_()
    d = torch.zeros(3, 4, dtype=torch.float64)
    d[1:] = 2.0  # rows: both zero, only e zero, same direction
    value = gradient_distance(e, d, scale_free)
    assert value.item() == (0 if scale_free else 4 * 4 + 4)
    (gradient,) = torch.autograd.grad(value, e)
    assert torch.isfinite(gradient).all()


def test_directions_of_tiny_gradients_are_told_apart():
    """A well-learned sample has an error near 1e-11, whose fourth power float32 does not have."""
    e = torch.tensor([[1.0, 0.0]]) * 1e-11
    for d, expected in (([1.0, 0.0], 0.0), ([0.0, 1.0], 2.0), ([-1.0, 0.0], 4.0)):
        got = gradient_distance(e, torch.tensor([d]) * 1e-11, scale_free=True)
        assert got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_head_of_zeros_trains(kind):
    """Every gradient at a boundary is zero in the first step."""
    engine = engine_of(Reconciliation(distance=kind, weight=1.0, warmup=0), optimizer=MOMENTUM)
    for block in engine.blocks[:-1]:
        for parameter in block.objective.parameters():
            nn.init.zeros_(parameter)
    train(engine, range(3), shards_of())
    for state in snapshot(engine).values():
        assert all(torch.isfinite(t).all() for t in state.values())


def test_a_penalty_that_is_not_finite_is_an_error_before_the_update():
    rule = Reconciliation(distance="squared", warmup=0)
    engine = engine_of(rule.model_copy(update={"weight": 1e300}))  # beyond what settings allow
    with torch.no_grad():
        engine.blocks[1].chain.units[0].weight.mul_(1e10)
        engine.blocks[0].objective.head.linear.weight.mul_(1e10)
    before = snapshot(engine)
    with pytest.raises(NonFiniteLossError, match="loss of block 2 is inf"):
        engine.train_step(0, shards_of())
    assert_same_state(snapshot(engine), before)


@pytest.mark.parametrize("bp_free", [False, True])
@pytest.mark.parametrize("kind", DISTANCES)
def test_bfloat16_is_finite(kind, bp_free):
    rule = Reconciliation(distance=kind, weight=0.5, warmup=0, bp_free=bp_free)
    settings = learner_settings(
        batch=8, optimizer=MOMENTUM, precision=PrecisionSettings(compute="bfloat16")
    )
    model, x = convnet(0), batch_of(0, shape=(2, 4, 4))[0]
    engine = make_engine(rule, model, ["1", "2.1"], x=x, settings=settings)

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, y = batch_of(step, shape=(2, 4, 4))
        return x.float(), y

    train(engine, range(5), shard_of)
    for state in snapshot(engine).values():
        assert all(torch.isfinite(t).all() for t in state.values())
