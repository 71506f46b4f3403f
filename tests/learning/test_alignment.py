"""Feedback alignment at boundaries, DFA and DRTP, by hand at every boundary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.alignment import BoundaryMap, ErrorMap, spread
from learning.objectives.base import Told
from learning.objectives.targets import TargetProjection
from learning.rules import Alignment, Backprop, DirectAlignment, Local, Rule, TargetAlignment
from learning.sequential import SequentialEngine
from learning.settings import PrecisionSettings, SGDSettings
from tests.learning.helpers import (
    assert_close,
    assert_same_bits,
    assert_same_state,
    batch_of,
    convnet,
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
MAPS: Any = ["random", "sign-symmetric"]
NETWORKS = {  # images cross the first boundary of the second
    "vectors": (mlp(0), ["1.0", "2.0"], (4,)),
    "images": (convnet(0, norm=False), ["1.0", "2.1"], (2, 4, 4)),
}


def engine_of(rule: Rule, network: str = "vectors", **settings) -> SequentialEngine:
    model, at, shape = NETWORKS[network]
    settings = learner_settings(batch=8, **settings)
    return make_engine(rule, model, at, x=batch_of(0, shape=shape)[0], settings=settings)


def maps_of(engine: SequentialEngine) -> list[Tensor]:
    """The fixed maps of blocks 1 to K-1."""
    return [block.receptor.weight.clone() for block in engine.blocks[:-1]]


def forward(parts, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each block's input, a leaf, and its output."""
    passes = []
    for chain, _ in parts:
        x = x.detach().requires_grad_()
        passes.append((x, chain(x)))
        x = passes[-1][1]
    return passes


def expected_from(parts, passes, deltas: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """The true gradients inside each block of a given gradient at its output."""
    return {
        k: named_like(chain, torch.autograd.grad(h, list(chain.parameters()), delta))
        for k, ((chain, _), (_, h), delta) in enumerate(
            zip(parts, passes, deltas, strict=True), start=1
        )
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_the_identity_is_backprop(network):
    states, shape = [], NETWORKS[network][2]
    for rule in (Alignment(map="identity"), Backprop()):
        engine = engine_of(rule, network, optimizer=MOMENTUM, shards=2)
        train(engine, range(5), shards_of(2, shape=shape))
        states.append(snapshot(engine))
    assert_same_state(*states)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", MAPS)
def test_gradients_by_hand(kind, network, shards):
    """At each boundary G' = B G, over channels where there are any; inside a block it is true."""
    shape = NETWORKS[network][2]
    engine = engine_of(Alignment(map=kind), network, shards=shards)
    parts, maps = parts_of(engine), maps_of(engine)
    x, y = batch_of(0, shape=shape)
    got = gradients_of(engine, 0, shards_of(shards, shape=shape))
    passes = forward(parts, x)
    loss = F.cross_entropy(passes[2][1], y)
    (at_scores,) = torch.autograd.grad(loss, passes[2][1], retain_graph=True)
    deltas = [at_scores]
    for k in (2, 1):
        (x, h), fixed = passes[k], maps[k - 1]
        (gradient,) = torch.autograd.grad(h, x, deltas[0], retain_graph=True)
        equation = "ij,bj...->bi..."
        deltas.insert(0, torch.einsum(equation, fixed, gradient))
    wanted = expected_from(parts, passes, deltas)
    for k in (1, 2, 3):
        assert_close(got[k], wanted[k])


@pytest.mark.parametrize("rule", [Alignment(), Alignment(map="sign-symmetric"), DirectAlignment()])
def test_maps_are_fixed_by_the_seed(rule):
    engine = engine_of(rule)
    before = maps_of(engine)
    train(engine, range(3), shards_of())
    assert all(torch.equal(a, b) for a, b in zip(maps_of(engine), before, strict=True))
    torch.manual_seed(123)  # another process, another state of the generator
    assert all(torch.equal(a, b) for a, b in zip(maps_of(engine_of(rule)), before, strict=True))
    others = [before[1], *maps_of(engine_of(rule, seed=1))]
    assert not any(torch.equal(before[0], other) for other in others)
    assert engine.blocks[-1].receptor is None
    parameters = {n for b in engine.blocks for n in b.updater.names}
    assert not any("receptor" in n or n.startswith("auxiliary") for n in parameters)


def test_sign_symmetric_maps_keep_signs():
    for weight in maps_of(engine_of(Alignment(map="sign-symmetric"))):
        assert (weight.diagonal() > 0).all()
        assert torch.equal(weight, weight.diagonal().diag())


@pytest.mark.parametrize("shape", [(300,), (300, 2, 3), (5, 300)])
@pytest.mark.parametrize("kind", MAPS)
def test_maps_keep_norms_on_average(kind, shape):
    torch.manual_seed(0)
    gradient = torch.randn(10, *shape)
    ratio = BoundaryMap(shape, kind)(gradient).norm() / gradient.norm()
    assert 0.9 < ratio < 1.1


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_direct_alignment_by_hand(network, shards):
    """delta_k = B_k e for every block below the last, e the gradient at the network's output."""
    shape = NETWORKS[network][2]
    engine = engine_of(DirectAlignment(), network, shards=shards)
    parts, maps = parts_of(engine), maps_of(engine)
    x, y = batch_of(0, shape=shape)
    got = gradients_of(engine, 0, shards_of(shards, shape=shape))
    passes = forward(parts, x)
    error = (torch.softmax(passes[2][1], 1) - F.one_hot(y, 3)).detach() / 8
    deltas = []
    for fixed, (_, h) in zip(maps, passes[:-1], strict=True):
        assert fixed.shape == (3, h.shape[1])
        delta = error @ fixed
        if h.dim() == 4:
            delta = (delta / 16)[:, :, None, None] * torch.ones(4, 4)
        deltas.append(delta)
    wanted = expected_from(parts, passes, [*deltas, error])
    for k in (1, 2, 3):
        assert_close(got[k], wanted[k])


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_target_projection_by_hand(network, shards):
    """The gradient at a block's output is minus the direction of its label, per sample."""
    shape = NETWORKS[network][2]
    engine = engine_of(TargetAlignment(), network, shards=shards)
    parts = parts_of(engine)
    directions = [block.objective.directions for block in engine.blocks[:-1]]
    x, y = batch_of(0, shape=shape)
    got = gradients_of(engine, 0, shards_of(shards, shape=shape))
    passes = forward(parts, x)
    deltas = []
    for fixed, (_, h) in zip(directions, passes[:-1], strict=True):
        delta = -torch.stack([fixed[label] for label in y]) / 8
        if h.dim() == 4:
            delta = (delta / 16)[:, :, None, None] * torch.ones(4, 4)
        deltas.append(delta)
    error = (torch.softmax(passes[2][1], 1) - F.one_hot(y, 3)).detach() / 8
    wanted = expected_from(parts, passes, [*deltas, error])
    for k in (1, 2, 3):
        assert_close(got[k], wanted[k])


def test_directions_of_targets_do_not_learn_and_are_saved():
    engine = engine_of(TargetAlignment(), optimizer=MOMENTUM)
    before = engine.blocks[0].objective.directions.clone()
    metrics = train(engine, range(5), shards_of())
    assert torch.equal(engine.blocks[0].objective.directions, before)
    assert torch.equal(snapshot(engine)["block1"]["auxiliary.directions"], before)
    assert sorted(metrics[0]) == ["block1", "block2", "block3"]


def test_scores_of_targets_are_those_of_the_mean_position():
    torch.manual_seed(0)
    objective = TargetProjection((5, 2, 3), 4)
    h, y = torch.randn(6, 5, 2, 3), torch.randint(4, (6,))
    assessment = objective(h, Told(y))
    scores = h.mean((2, 3)) @ objective.directions.T
    torch.testing.assert_close(assessment.scores, scores)
    torch.testing.assert_close(assessment.loss, -scores.gather(1, y[:, None]).sum())


def test_labels_of_tokens_project_to_their_own_positions():
    torch.manual_seed(0)
    objective = TargetProjection((3, 5), 4)
    h, y = torch.randn(6, 3, 5, requires_grad=True), torch.randint(4, (6, 3))
    assessment = objective(h, Told(y))
    (gradient,) = torch.autograd.grad(assessment.loss, h)
    torch.testing.assert_close(gradient, -objective.directions[y] / 3)
    assert assessment.scores.shape == (6, 3, 4)


def test_errors_of_tokens_project_to_their_own_positions():
    torch.manual_seed(0)
    per_token, pooled = (ErrorMap((3, 5), 4, per_token=p) for p in (True, False))
    error = torch.randn(6, 3, 4)
    torch.testing.assert_close(per_token(error), error @ per_token.weight)
    one = error[:, 0]
    expected = (one @ pooled.weight)[:, None].expand(6, 3, 5) / 3
    torch.testing.assert_close(pooled(one), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3), (6, 4)])
def test_spreading_is_the_gradient_of_the_mean_position(shape):
    h = torch.randn(2, *shape, requires_grad=True)
    features = torch.randn(2, 4)
    positions = {1: [], 2: [1], 3: [2, 3]}[len(shape)]
    mean = h.mean(positions) if positions else h
    (gradient,) = torch.autograd.grad((mean * features).sum(), h)
    torch.testing.assert_close(spread(features, shape), gradient)


def test_who_sends_to_whom():
    """Errors and targets reach blocks without passing through others."""
    aligned, direct, target = (
        engine_of(rule).program for rule in (Alignment(), DirectAlignment(), TargetAlignment())
    )
    receivers = [[p.receivers(f"block{k}") for k in (1, 2, 3)] for p in (aligned, direct, target)]
    assert receivers[0] == [["block2"], ["block3", "block1"], ["block2"]]
    assert receivers[1] == [["block2"], ["block3"], ["block1", "block2"]]
    assert receivers[2] == [["block2"], ["block3"], []]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DirectAlignment(), [("block1", 3), ("block2", 3)]),
        (Alignment(), [("block1", 3), ("block2", 3)]),
        (TargetAlignment(), []),
    ],
)
def test_gradient_messages_that_are_posted(rule, expected, monkeypatch):
    posted = []
    engine = engine_of(rule)
    post = engine._post

    def record(posts):
        posts = list(posts)
        posted.extend((p.to, p.key.origin) for p in posts if p.key.what == "g")
        post(posts)

    monkeypatch.setattr(engine, "_post", record)
    train(engine, range(1), shards_of())
    assert sorted(posted) == expected
    assert not engine._mail


@pytest.mark.parametrize("rule", [Alignment(), DirectAlignment(), TargetAlignment()])
def test_one_block_is_backprop(rule):
    settings, states = learner_settings(batch=8, optimizer=MOMENTUM), []
    for one in (rule, Backprop()):
        engine = make_engine(one, mlp(0), [], x=batch_of(0)[0], settings=settings)
        train(engine, range(3), shards_of())
        states.append(snapshot(engine))
    assert_same_state(*states)


@pytest.mark.parametrize("rule", [Alignment(), DirectAlignment(), TargetAlignment()])
def test_the_last_block_learns_as_ever(rule):
    other = Local() if isinstance(rule, TargetAlignment) else Backprop()
    got, expected = (gradients_of(engine_of(r), 0, shards_of())[3] for r in (rule, other))
    assert_same_bits(got, expected)


@pytest.mark.parametrize("policy", ["bfloat16", "channels-last"])
@pytest.mark.parametrize(
    "rule", [Alignment(), Alignment(map="sign-symmetric"), DirectAlignment(), TargetAlignment()]
)
def test_precision_and_resuming(rule, policy):
    """Both policies run, stay finite, and a resumed run draws the same maps anew."""
    numerics = (
        PrecisionSettings(compute="bfloat16")
        if policy == "bfloat16"
        else PrecisionSettings(memory_format="channels-last")
    )

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, y = batch_of(step, shape=(2, 4, 4))
        return x.float(), y

    whole, resumed = (
        engine_of(rule, "images", optimizer=MOMENTUM, precision=numerics) for _ in range(2)
    )
    train(whole, range(3), shard_of)
    resumed.load_state_dict(snapshot(whole), 3)
    for engine in (whole, resumed):
        train(engine, range(3, 6), shard_of)
    assert_same_state(snapshot(resumed), snapshot(whole))
    for state in snapshot(whole).values():
        assert all(math.isfinite(t.double().sum()) for t in state.values())


def test_a_first_block_without_parameters():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    for rule in (Alignment(), DirectAlignment(), TargetAlignment()):
        settings = learner_settings(batch=8)
        engine = make_engine(rule, model, ["1", "3"], x=batch_of(0)[0], settings=settings)
        train(engine, range(2), shards_of())
