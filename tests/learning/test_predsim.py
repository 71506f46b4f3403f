"""Prediction and similarity: the similarity loss by hand, its ends, and where it cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from learning.checks import check_program
from learning.errors import UserError
from learning.objectives.base import Told
from learning.objectives.similarity import PredictionAndSimilarity, prediction_head, similarity
from learning.rules import Local, PredSim
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


def by_hand(rows: list[list[float]]) -> list[list[float]]:
    """Cosines of centred rows, in plain Python."""
    centred = [[v - sum(row) / len(row) for v in row] for row in rows]
    rows_and_norms = [(row, math.hypot(*row)) for row in centred]
    return [
        [sum(a * b for a, b in zip(u, v, strict=True)) / n / m for v, m in rows_and_norms]
        for u, n in rows_and_norms
    ]


def test_similarity_of_vectors_by_hand():
    x = random(5, 4)
    torch.testing.assert_close(
        similarity(x), torch.tensor(by_hand(x.tolist()), dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_similarity_of_maps_is_that_of_the_deviations_over_space():
    x = random(5, 4, 3, 2)
    deviations = [
        [math.sqrt(sum((v - sum(c) / 6) ** 2 for v in c) / 5) for c in sample]
        for sample in x.flatten(2).tolist()
    ]
    expected = torch.tensor(by_hand(deviations), dtype=torch.float64)
    torch.testing.assert_close(similarity(x), expected, atol=1e-6, rtol=0)
    # Positions of tokens are space.
    torch.testing.assert_close(similarity(x.flatten(2).transpose(1, 2)), similarity(x))


@pytest.mark.parametrize("shape", [(4, 1, 1), (3, 2, 2)])
def test_maps_that_leave_too_little_are_flattened(shape):
    x = random(5, *shape)
    torch.testing.assert_close(similarity(x), similarity(x.flatten(1)))


def test_labels_are_alike_or_as_unlike_as_labels_can_be():
    target = similarity(F.one_hot(Y, 3).double())
    same = (Y[:, None] == Y).double()
    torch.testing.assert_close(target, same - 0.5 * (1 - same), atol=1e-6, rtol=0)


def test_the_similarity_of_nothing_has_a_gradient():
    for x in (torch.zeros(3, 4, 2, 2), torch.zeros(3, 4), torch.ones(3, 4)):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(similarity(x).sum(), x)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(6,), (4, 3, 3), (5, 4)])
def test_the_loss_by_hand(shape):
    """(1 - beta) sum of CE + beta b mean of squares over pairs; the update divides by b."""
    objective = PredictionAndSimilarity(shape, 3, beta=0.7, dim=8).double()
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter)
    h = random(5, *shape)
    assessment, gradient = assessed(objective, h, Told(Y))

    h = h.requires_grad_()
    c = objective.embed.weight
    embedded = F.conv2d(h, c, padding=1) if len(shape) == 3 else h @ c.T
    scores = objective.head(h)
    pairs = (similarity(embedded) - similarity(F.one_hot(Y, 3).double())).square()
    expected = 0.3 * F.cross_entropy(scores, Y) + 0.7 * pairs.sum() / 25
    torch.testing.assert_close(assessment.loss / 5, expected)
    (wanted,) = torch.autograd.grad(expected, h)
    torch.testing.assert_close(gradient / 5, wanted)


def test_the_gradient_of_the_similarity_is_that_of_finite_differences():
    objective = PredictionAndSimilarity((4, 2, 2), 3, beta=0.99, dim=8).double()
    h = random(5, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, Told(Y)).loss, h)


@pytest.mark.parametrize(
    ("shape", "dim", "features"),
    [
        ((4, 8, 8), 256, 256),  # as it is
        ((4, 8, 8), 255, 128),
        ((4, 8, 8), 63, 32),
        ((4, 5, 3), 20, 16),  # 3 x 3, 2 x 3, 2 x 2: halves are rounded up
        ((4, 8, 8), 1, 4),  # never less than the channels
        ((6,), 2, 6),
    ],
)
def test_the_prediction_reads_at_most_so_many_features(shape, dim, features):
    head = prediction_head(shape, 3, dim, per_token=False)
    assert head.linear.in_features == features
    assert not head.linear.weight.any() and not head.linear.bias.any()
    assert head(torch.randn(5, *shape)).shape == (5, 3)


@pytest.mark.parametrize("rule", [PredSim(beta=0.0), PredSim(mode="pred", beta=0.4)])
def test_without_similarity_it_is_local(rule: PredSim):
    engine, local = engine_of(rule), engine_of(Local())
    for block in local.blocks[:-1]:
        for parameter in block.objective.head.parameters():
            torch.nn.init.zeros_(parameter)
    for one in (engine, local):
        train(one, range(4), shards_of())
    assert_same_bits(model_state(engine), model_state(local))


@pytest.mark.parametrize("rule", [PredSim(beta=1.0), PredSim(mode="sim")])
def test_the_classifier_of_pure_similarity_watches_only(rule: PredSim):
    """It learns and says the accuracy, but the block and the reported loss know nothing of it."""
    engine = engine_of(rule)
    objective = engine.blocks[0].objective
    torch.nn.init.normal_(objective.head.linear.weight)
    h, told = random(5, 6), Told(Y)
    assessment, gradient = assessed(objective, h, told)
    pairs = similarity(objective.embed(h)) - similarity(F.one_hot(Y, 3).double())
    torch.testing.assert_close(assessment.loss, 5 * pairs.square().mean())
    torch.nn.init.normal_(objective.head.linear.weight)
    again, same_gradient = assessed(objective, h, told)
    torch.testing.assert_close(again.loss, assessment.loss)
    assert torch.equal(gradient, same_gradient)
    before = objective.head.linear.weight.clone()
    train(engine, range(1), shards_of())
    assert not torch.equal(objective.head.linear.weight, before)


def test_the_similarity_compares_samples():
    assert PredSim().batch_coupled and PredSim(mode="sim", beta=0.0).batch_coupled
    assert not PredSim(mode="pred").batch_coupled and not PredSim(beta=0.0).batch_coupled


def check(rule: PredSim, *, shards: int = 1, target_shape: tuple[int, ...] = ()) -> None:
    shape = (5, 4) if target_shape else (4,)
    engine = engine_of(PredSim(mode="pred"), shape=shape, target_shape=target_shape, shards=shards)
    program = replace(engine.program, rule=rule)
    check_program(program, [block.units for block in engine.blocks], torch.zeros(4, *shape))


def test_bad_combinations_are_refused():
    check(PredSim(mode="pred"), shards=2, target_shape=(5,))
    with pytest.raises(UserError, match=r"training.shards = 2 shows a block only a part"):
        check(PredSim(), shards=2)
    with pytest.raises(UserError, match=r"rule.mode = both compares samples that have one label"):
        check(PredSim(), target_shape=(5,))


def test_predictions_of_tokens():
    engine = engine_of(PredSim(mode="pred"), shape=(5, 4), target_shape=(5,))
    history = train(engine, range(3), tokens_of())
    assert history[-1]["block1"]["loss"] < history[0]["block1"]["loss"] + 1


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4)])
def test_state_goes_on(shape):
    def make(seed: int):
        model, at = (mlp(seed), ("1.0", "2.0")) if shape == (4,) else (convnet(seed), ("1", "2"))
        return engine_of(PredSim(beta=0.5), model, at, shape=shape, seed=seed)

    assert_goes_on(make, shards_of(shape=shape))
