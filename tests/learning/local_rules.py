"""What the tests of rules with objectives of their own share: engines, tokens, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from learning.build import Program
from learning.objectives.base import Assessment, Objective, Told
from learning.rules import Rule
from learning.sequential import SequentialEngine, ShardOf
from learning.settings import SGDSettings
from learning.units import Chain, split, units_of
from tests.learning.helpers import (
    assert_same_state,
    batch_of,
    learner_settings,
    mlp,
    shards_of,
    snapshot,
    train,
)

MOMENTUM = SGDSettings(lr=0.2, momentum=0.9)
AT = ("1.0", "2.0")  # the last unit of block 3 is the head


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def engine_of(
    rule: Rule,
    model: nn.Sequential | None = None,
    at: Sequence[str] = AT,
    *,
    shape: tuple[int, ...] = (4,),
    target_shape: tuple[int, ...] = (),
    **settings,
) -> SequentialEngine:
    """An engine in float64 for batches of 8, of `mlp(0)` in three blocks unless told."""
    blocks = split(units_of(copy.deepcopy(mlp(0) if model is None else model)), at)
    shapes, h = [], batch_of(0, shape=shape)[0].float()
    for block in blocks:
        with torch.no_grad():
            h = Chain(copy.deepcopy(block)).eval()(h)
        shapes.append(tuple(h.shape[1:]))
    settings = learner_settings(**({"batch": 8, "optimizer": MOMENTUM} | settings))
    program = Program(rule, settings, tuple(shapes), 3, shape, target_shape)
    return SequentialEngine(program, blocks)


def tokens_of(shards: int = 1, *, tokens: int = 5) -> ShardOf:
    """Batches of 8 rows of tokens (T, 4), with one label of three a token."""

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, _ = batch_of(step, shape=(tokens, 4))
        y = torch.randint(3, (8, tokens), generator=torch.Generator().manual_seed(step))
        return x.chunk(shards)[shard], y.chunk(shards)[shard]

    return shard_of


def assessed(objective: Objective, h: Tensor, told: Told) -> tuple[Assessment, Tensor]:
    """The assessment of h and the gradient of its loss there."""
    h = h.detach().requires_grad_()
    assessment = objective(h, told)
    return assessment, torch.autograd.grad(assessment.loss, h)[0]


def assert_goes_on(
    make: Callable[[int], SequentialEngine], shard_of: ShardOf | None = None
) -> None:
    """A state loaded into another engine (other weights) continues with the same bits."""
    shard_of = shard_of or shards_of()
    engine, other = make(0), make(1)
    train(engine, range(3), shard_of)
    state = snapshot(engine)
    train(other, range(1), shard_of)
    other.load_state_dict(state, 3)
    assert_same_state(snapshot(other), state)
    for one in (engine, other):
        train(one, range(3, 6), shard_of)
    assert_same_state(snapshot(other), snapshot(engine))
