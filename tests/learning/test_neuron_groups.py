"""Neuron groups: whose loss reaches which channels, the diversity by hand, and one group."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learning.errors import UserError
from learning.objectives.base import Told
from learning.objectives.groups import GroupClassifiers, diversity
from learning.objectives.heads import HeadSettings, PooledLinear, TokenLinear
from learning.rules import Local, NeuronGroups
from tests.learning.helpers import (
    assert_same_bits,
    convnet,
    mlp,
    model_state,
    shards_of,
    train,
)
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random, tokens_of

Y = torch.tensor([0, 2, 1, 2, 0])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def heads(shape: tuple[int, ...], count: int, *, per_token: bool = False) -> list[nn.Module]:
    if len(shape) == 2:
        return [TokenLinear(shape, 3, per_token=per_token) for _ in range(count)]
    return [PooledLinear(shape, 3, 1) for _ in range(count)]


def test_diversity_by_hand():
    """Cosines of exp(s / 3) over the wrong labels, mean over the three pairs of heads."""
    scores, y = random(3, 4, 5), torch.tensor([1, 0, 4, 4])
    for n, label in enumerate(y.tolist()):
        e = [
            [math.exp(float(scores[g, n, c]) / 3) for c in range(5) if c != label] for g in range(3)
        ]
        cosines = [
            sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
            for u, v in ((e[0], e[1]), (e[0], e[2]), (e[1], e[2]))
        ]
        assert float(diversity(scores, y)[n]) == pytest.approx(sum(cosines) / 3, rel=1e-6)


def test_one_head_has_nothing_to_differ_from():
    assert not diversity(random(1, 4, 5), torch.zeros(4, dtype=torch.long)).any()


@pytest.mark.parametrize(("shape", "channels"), [((5,), 5), ((5, 2, 2), 5), ((3, 5), 5)])
def test_a_head_s_loss_reaches_its_own_channels_only(shape, channels):
    """Without diversity: the gradient at group i is that of CE_i alone, over the heads."""
    made = heads(shape, 2)
    objective = GroupClassifiers(made, shape, 0.0).double()
    h = random(5, *shape).requires_grad_()
    assessment, gradient = assessed(objective, h, Told(Y))
    losses = [F.cross_entropy(head(h), Y, reduction="sum") for head in made]
    torch.testing.assert_close(assessment.loss, sum(losses) / 2)
    wanted = [torch.autograd.grad(loss, h)[0] / 2 for loss in losses]
    dim = 2 if len(shape) == 2 else 1
    expected = torch.cat((wanted[0].narrow(dim, 0, 3), wanted[1].narrow(dim, 3, 2)), dim)
    torch.testing.assert_close(gradient, expected)
    assert channels == sum(objective.sizes)


def test_diversity_pushes_each_group_through_its_own_head():
    made = heads((5,), 2)
    objective = GroupClassifiers(made, (5,), 0.5).double()
    h = random(5, 5)
    assessment, gradient = assessed(objective, h, Told(Y))
    plain, without = assessed(GroupClassifiers(made, (5,), 0.0), h, Told(Y))
    a, b = h.clone().requires_grad_(), h.clone().requires_grad_()
    penalty = 0.5 * diversity(torch.stack([made[0](a), made[1](b)]), Y).sum()
    through = torch.autograd.grad(penalty, (a, b))
    torch.testing.assert_close(assessment.loss, plain.loss + penalty)
    expected = torch.cat((through[0][:, :3], through[1][:, 3:]), 1)
    torch.testing.assert_close(gradient - without, expected)


def test_labels_of_tokens_count_the_mean_over_tokens():
    made, y = heads((4, 5), 2, per_token=True), torch.arange(20).view(5, 4) % 3
    h = random(5, 4, 5)
    assessment, _ = assessed(GroupClassifiers(made, (4, 5), 0.5).double(), h, Told(y))
    scores = torch.stack([head(h).flatten(0, 1) for head in made])
    losses = sum(F.cross_entropy(s, y.flatten(), reduction="sum") for s in scores) / 2
    expected = (losses + 0.5 * diversity(scores, y.flatten()).sum()) / 4
    torch.testing.assert_close(assessment.loss, expected)
    assert assessment.scores.shape == (5, 4, 3)


def test_scores_are_the_mean_log_probabilities():
    made = heads((5,), 2)
    h = random(5, 5)
    assessment, _ = assessed(GroupClassifiers(made, (5,), 0.5).double(), h, Told(Y))
    logs = [torch.log_softmax(head(h), -1) for head in made]
    torch.testing.assert_close(assessment.scores, (logs[0] + logs[1]) / 2)


@pytest.mark.parametrize("conv", [False, True])
def test_one_group_is_local(conv):
    options = {"model": convnet(0), "at": ("1", "2"), "shape": (2, 4, 4)} if conv else {}
    head, states = HeadSettings(kind="conv", width=5), []
    for rule in (NeuronGroups(groups=1, head=head), Local(head=head)):
        engine = engine_of(rule, **options)
        train(engine, range(4), shards_of(shape=options.get("shape", (4,))))
        states.append(model_state(engine))
    assert_same_bits(*states)


def test_more_groups_than_channels_are_refused():
    with pytest.raises(UserError, match=r"rule.groups = 7 is more than the 6 channels"):
        engine_of(NeuronGroups(groups=7))


def test_shards_change_nothing_but_rounding():
    states = []
    for shards in (1, 4):
        engine = engine_of(NeuronGroups(), shards=shards)
        train(engine, range(3), shards_of(shards))
        states.append(model_state(engine))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tokens", [False, True])
def test_state_goes_on(tokens):
    options = {"shape": (5, 4), "target_shape": (5,)} if tokens else {}
    assert_goes_on(
        lambda seed: engine_of(NeuronGroups(groups=3), mlp(seed), seed=seed, **options),
        tokens_of() if tokens else None,
    )
