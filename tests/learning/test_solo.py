"""SOLO: scores through the network's unembedding, whose copy moves but does not learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.learners.publishing import Reading
from learning.networks import GPTSettings, build_network
from learning.objectives.base import Told
from learning.objectives.heads import HeadSettings, TokenLinear, make_head, transformer_features
from learning.objectives.unembedding import UnembeddedClassifier
from learning.rules import Local, SharedUnembedding
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings
from tests.learning.helpers import (
    assert_same_bits,
    gradients_of,
    mlp,
    model_state,
    train,
)
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random, tokens_of

SHAPE = (5, 6)
TOKENS = {"shape": (5, 4), "target_shape": (5,)}
Y = torch.arange(20).view(4, 5) % 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def solo(**settings) -> SharedUnembedding:
    return SharedUnembedding(**({"blocks": 0, "heads": 2} | settings))


def test_the_loss_by_hand():
    """CE of scale * W rms-norm(h) + bias, the sum over samples of the mean over tokens."""
    objective = UnembeddedClassifier(
        nn.Sequential(), SHAPE, 3, kind="shared", per_token=True
    ).double()
    weight = random(3, 6, seed=1)
    objective.take({"norm.weight": torch.ones(6), "unembed.weight": weight})
    with torch.no_grad():
        objective.scale.fill_(1.7)
        objective.norm.weight.copy_(random(6, seed=2))
        objective.label_bias.copy_(random(3, seed=3))
    h = random(4, *SHAPE)
    assessment, gradient = assessed(objective, h, Told(Y))
    h = h.requires_grad_()
    mean_square = h.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps
    z = h / mean_square.sqrt() * objective.norm.weight
    scores = 1.7 * z @ weight.T + objective.label_bias
    expected = F.cross_entropy(scores.flatten(0, 1), Y.flatten()) * 4
    torch.testing.assert_close(assessment.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, h)[0])
    assert assessment.scores.shape == (4, 5, 3)
    assert "unembedding" not in dict(objective.named_parameters())


def test_one_label_a_row_averages_the_tokens():
    objective = UnembeddedClassifier(
        nn.Sequential(), SHAPE, 3, kind="random", per_token=False
    ).double()
    h = random(4, *SHAPE)
    assessment, _ = assessed(objective, h, Told(Y[:, 0]))
    expected = objective.norm(h).mean(1) @ objective.unembedding.T
    torch.testing.assert_close(assessment.scores, expected)


def unembedding(engine: SequentialEngine, k: int) -> Tensor:
    return engine.blocks[k - 1].objective.unembedding.detach().clone()


@pytest.mark.parametrize("every", [1, 2])
def test_the_copy_is_the_one_of_k_steps_ago(every):
    engine = engine_of(solo(every=every), **TOKENS)
    weights = [model_state(engine)["3.weight"]]
    expected = {1: weights[0], 2: weights[0]}
    for step in range(7):
        train(engine, range(step, step + 1), tokens_of())
        for k in (1, 2):
            published = step - (3 - k)
            if published > 0 and published % every == 0:
                expected[k] = weights[published]
            assert torch.equal(unembedding(engine, k), expected[k]), (step, k)
        weights.append(model_state(engine)["3.weight"])
    assert not torch.equal(weights[0], weights[-1])


def test_only_the_task_loss_trains_the_unembedding():
    """Block 3 learns as it does from these inputs under local learning with any heads."""
    engine = engine_of(solo(), **TOKENS)
    got = gradients_of(engine, 0, tokens_of())
    assert not any("unembedding" in name for name in got[1])
    assert {"auxiliary.scale", "auxiliary.label_bias", "auxiliary.norm.weight"} <= set(got[1])
    private = engine_of(solo(readout="private"), **TOKENS)
    assert "auxiliary.unembedding" in gradients_of(private, 0, tokens_of())[1]


def test_shared_but_never_renewed_is_a_fixed_readout():
    states = []
    for rule in (solo(every=1000, blocks=1), solo(readout="random", blocks=1)):
        engine = engine_of(rule, **TOKENS)
        for block in engine.blocks[:-1]:
            block.objective.unembedding.copy_(engine.blocks[-1].units[-1].module.weight.detach())
        train(engine, range(4), tokens_of())
        states.append(model_state(engine))
    assert_same_bits(*states)


def test_a_private_readout_without_blocks_is_a_linear_head():
    """The scale and the bias of the head are the only difference: 1 and the same bias here."""
    engine, local = engine_of(solo(readout="private"), **TOKENS), engine_of(Local(), **TOKENS)
    for mine, other in zip(engine.blocks[:-1], local.blocks[:-1], strict=True):
        head = other.objective.head
        with torch.no_grad():
            mine.objective.unembedding.copy_(head.linear.weight)
            mine.objective.label_bias.copy_(head.linear.bias)
    mine, others = (gradients_of(e, 0, tokens_of()) for e in (engine, local))
    for k in (1, 2, 3):
        for name, gradient in others[k].items():
            if not name.startswith("auxiliary"):
                torch.testing.assert_close(mine[k][name], gradient)


def test_who_reads_the_unembedding():
    assert list(solo(every=3).readings(4)) == [Reading(k, 4, -1, 3) for k in (1, 2, 3)]
    assert not solo(readout="private").readings(4) and not solo(readout="random").readings(4)


def check(rule, model: nn.Sequential | None = None, **options) -> None:
    engine = engine_of(Local(), model, **options)
    program: Program = replace(engine.program, rule=rule)
    shape = options.get("shape", (4,))
    check_program(program, [block.units for block in engine.blocks], torch.zeros(4, *shape))


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            lambda: check(solo()),
            r"solo reads activations of shape \(tokens, features\), not \(6,\)",
        ),
        (lambda: check(solo(blocks=1, heads=4), **TOKENS), "4 attention heads .* the 6 features"),
        (
            lambda: check(
                solo(), nn.Sequential(*mlp(0)[:3], nn.Linear(6, 2), nn.Linear(2, 3)), **TOKENS
            ),
            r"one matrix of \(classes, features\) = \(3, 6\) in the network's last unit, which has "
            r"weight \(3, 2\), bias \(3,\)",
        ),
        (
            lambda: make_head(HeadSettings(kind="transformer"), (6,), 3),
            r"read tokens \(tokens, features\), not \(6,\)",
        ),
        (
            lambda: make_head(HeadSettings(), (6,), 3, (5,)),
            r"one label a token a head reads tokens \(tokens, features\), not \(6,\)",
        ),
    ],
)
def test_bad_combinations_are_refused(run: Callable[[], None], sentence):
    with pytest.raises(UserError, match=sentence):
        run()


def test_own_blocks_are_causal_unless_told():
    x, y = random(2, 5, 8).float(), random(2, 5, 8, seed=1).float()
    y[:, :3] = x[:, :3]
    for causal in (True, False):
        features = transformer_features((5, 8), 2, 2, causal=causal)
        same = torch.equal(features(x)[:, :3], features(y)[:, :3])
        assert same is causal
    assert len(transformer_features((5, 8), 0, 2, causal=True)) == 0
    # Heads of an odd size cannot turn pairs: no positions.
    assert transformer_features((5, 9), 1, 3, causal=True)(torch.randn(2, 5, 9)).shape == (2, 5, 9)


@pytest.mark.parametrize("target_shape", [(), (5,)])
def test_a_head_of_transformer_blocks_is_blocks_and_a_linear_head(target_shape):
    head = make_head(HeadSettings(kind="transformer", depth=2, heads=2), SHAPE, 3, target_shape)
    h = torch.randn(4, *SHAPE)
    assert isinstance(head.linear, TokenLinear)
    normed = head.linear.norm(head.features[1](head.features[0](h)))
    expected = head.linear.linear(normed if target_shape else normed.mean(1))
    torch.testing.assert_close(head(h), expected)
    assert len(head.features) == 2


@pytest.mark.parametrize("readout", ["shared", "private", "random"])
def test_it_learns_to_tell_tokens(readout):
    """Sorting tokens by their class needs no other token; every block gets it."""
    settings = GPTSettings(width=8, depth=2, heads=2)
    model = build_network(settings, (5,), 3, 0, tokens=True)
    embed = nn.Linear(4, 8)
    model = nn.Sequential(embed, *list(model)[1:])

    def shard_of(step: int, shard: int):
        y = torch.randint(3, (8, 5), generator=torch.Generator().manual_seed(step))
        return F.one_hot(y, 4).double(), y

    rule = solo(blocks=1, readout=readout)
    engine = engine_of(
        rule, model, ("1", "2"), **TOKENS, optimizer=AdamWSettings(lr=0.02), steps=60
    )
    history = train(engine, range(60), shard_of)
    assert all(history[-1][f"block{k}"]["accuracy"] == 1 for k in (1, 2, 3))


@pytest.mark.parametrize("readout", ["shared", "private", "random"])
def test_state_goes_on(readout):
    rule = solo(blocks=1, readout=readout)
    assert_goes_on(lambda seed: engine_of(rule, mlp(seed), seed=seed, **TOKENS), tokens_of())
