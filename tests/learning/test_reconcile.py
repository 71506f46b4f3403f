"""Reconciliation: the penalty by explicit formulas, and its limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learning.objectives.heads import HeadSettings
from learning.rules import Local, Reconciliation
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
    parts_of,
    shards_of,
    snapshot,
    train,
)
from tests.learning.reconciling import DISTANCES, HEAD, MOMENTUM, distance, engine_of, errors


@pytest.mark.parametrize("bp_free", [False, True])
@pytest.mark.parametrize(("step", "warmup", "share"), [(0, 0.0, 1.0), (2, 0.5, 0.4), (9, 0.5, 1)])
@pytest.mark.parametrize("kind", DISTANCES)
def test_gradients_by_hand(kind, step, warmup, share, bp_free):
    """L_k + weight R_k with e_k and d_k written out, for three blocks of tanh layers."""
    rule = Reconciliation(distance=kind, weight=0.7, warmup=warmup, bp_free=bp_free)
    engine = engine_of(rule, steps=10)
    weight = 0.7 * share
    (x, y), p = batch_of(step), {}
    for block in engine.blocks:
        tensors = {**dict(block.chain.original_state()), **dict(block.objective.named_parameters())}
        p |= {f"{block.index}/{n}": t.detach().clone().requires_grad_() for n, t in tensors.items()}
    got = gradients_of(engine, step, shards_of())

    w1, b1, a1, c1 = (p[f"1/{n}"] for n in ("0.0.weight", "0.0.bias", *HEAD))
    h1 = torch.tanh(x @ w1.T + b1)
    scores1 = h1 @ a1.T + c1
    loss1 = F.cross_entropy(scores1, y)
    d1, h1 = (errors(scores1, y) @ a1).detach(), h1.detach()

    w2, b2, a2, c2 = (p[f"2/{n}"] for n in ("1.0.weight", "1.0.bias", *HEAD))
    h2 = torch.tanh(h1 @ w2.T + b2)
    scores2 = h2 @ a2.T + c2
    v2 = errors(scores2, y) @ a2
    at_h2 = v2.detach() if bp_free else v2
    e2 = (at_h2 * (1 - h2**2)) @ w2
    loss2 = F.cross_entropy(scores2, y) + weight * distance(e2, d1, kind) / len(x)
    d2, h2 = v2.detach(), h2.detach()

    w3, b3, w4, b4 = (p[f"3/{n}"] for n in ("2.0.weight", "2.0.bias", "3.weight", "3.bias"))
    g = torch.tanh(h2 @ w3.T + b3)
    scores3 = g @ w4.T + b4
    error = errors(scores3, y).detach() if bp_free else errors(scores3, y)
    e3 = ((error @ w4) * (1 - g**2)) @ w3
    loss3 = F.cross_entropy(scores3, y) + weight * distance(e3, d2, kind) / len(x)

    for k, loss in ((1, loss1), (2, loss2), (3, loss3)):
        names = [n.removeprefix(f"{k}/") for n in p if n.startswith(f"{k}/")]
        wanted = torch.autograd.grad(loss, [p[f"{k}/{n}"] for n in names])
        names = [f"auxiliary.{n}" if n.startswith("head") else n for n in names]
        assert_close(got[k], dict(zip(names, wanted, strict=True)))


@pytest.mark.parametrize("layer", [nn.Identity(), nn.ReLU()])
def test_without_backprop_one_layer_learns_by_an_outer_product(layer):
    """dR/dW = 2 v (W^T v - d)^T, v the gradient before the layer's nonlinearity."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), layer, nn.Linear(5, 3))
    gradients, (x, y) = [], batch_of(0)
    for weight in (0.0, 1.0):
        rule = Reconciliation(distance="squared", weight=weight, warmup=0, bp_free=True)
        engine = make_engine(rule, model, ["1", "3"], x=x, settings=learner_settings(batch=8))
        (first, head1), (second, head2), _ = parts_of(engine)
        gradients.append(gradients_of(engine, 0, shards_of())[2])
    h1 = first(x)
    h2 = second(h1)
    d = errors(head1(h1), y) @ head1.linear.weight
    v = errors(head2(h2), y) @ head2.linear.weight
    v = v * (h2 > 0) if isinstance(layer, nn.ReLU) else v
    expected = 2 * v.T @ (v @ second.units[0].weight - d) / len(x)
    torch.testing.assert_close(gradients[1]["1.weight"] - gradients[0]["1.weight"], expected)
    rest = [{n: g for n, g in one.items() if n != "1.weight"} for one in gradients]
    assert_close(*rest)  # neither bias nor head takes part in the penalty


@pytest.mark.parametrize("kind", DISTANCES)
def test_block_1_has_no_penalty_and_the_arriving_gradient_is_a_constant(kind):
    """Whatever the weight, block 1 does what local learning does: nothing comes back to it."""
    strong = engine_of(Reconciliation(distance=kind, weight=50.0, warmup=0))
    local = engine_of(Local())
    got, expected = (gradients_of(e, 0, shards_of()) for e in (strong, local))
    assert_same_bits(got[1], expected[1])
    assert (got[2]["1.0.weight"] - expected[2]["1.0.weight"]).abs().max() > 1e-3
    assert all(strong.program.receivers(f"block{k}") == [f"block{k + 1}"] for k in (1, 2))
    assert not strong._mail


@pytest.mark.parametrize(
    ("model", "at", "shape"),
    [(mlp(0, norm=True), ["1.0", "2.0"], (4,)), (convnet(0), ["1", "2.1"], (2, 4, 4))],
)
@pytest.mark.parametrize("head", [HeadSettings(), HeadSettings(kind="conv", width=4, pool=2)])
@pytest.mark.parametrize("kind", DISTANCES)
def test_weight_0_is_local_learning(kind, head, model, at, shape):
    states = []
    for rule in (Reconciliation(weight=0, distance=kind, head=head), Local(head=head)):
        settings = learner_settings(batch=8, optimizer=MOMENTUM)
        engine = make_engine(rule, model, at, x=batch_of(0, shape=shape)[0], settings=settings)
        metrics = train(engine, range(4), shards_of(shape=shape))
        states.append((snapshot(engine), metrics))
    assert_same_state(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_the_warm_up_starts_with_local_learning():
    states = []
    for rule in (Reconciliation(weight=3.0, warmup=0.5), Local()):
        engine = engine_of(rule, optimizer=MOMENTUM)
        train(engine, range(1), shards_of())
        states.append(snapshot(engine))
        train(engine, range(1, 2), shards_of())
        states.append(snapshot(engine))
    assert_same_state(states[0], states[2])
    assert not torch.equal(
        states[1]["block2"]["model.1.0.weight"], states[3]["block2"]["model.1.0.weight"]
    )


@pytest.mark.parametrize("bp_free", [False, True])
@pytest.mark.parametrize("kind", DISTANCES)
def test_two_shards_give_the_gradients_of_one(kind, bp_free):
    rule = Reconciliation(distance=kind, weight=0.5, warmup=0, bp_free=bp_free)
    got = [gradients_of(engine_of(rule, shards=n), 0, shards_of(n)) for n in (1, 2, 4)]
    for k in (1, 2, 3):
        assert_close(got[1][k], got[0][k])
        assert_close(got[2][k], got[0][k])


def test_a_first_block_with_nothing_to_learn():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    rule = Reconciliation(weight=0.5, warmup=0)
    x = batch_of(0)[0]
    engine = make_engine(rule, model, ["1", "3"], x=x, settings=learner_settings(batch=8))
    got = gradients_of(engine, 0, shards_of())
    assert sorted(got[1]) == [f"auxiliary.{HEAD[1]}", f"auxiliary.{HEAD[0]}"]
    local = make_engine(Local(), model, ["1", "3"], x=x, settings=learner_settings(batch=8))
    expected = gradients_of(local, 0, shards_of())
    assert_close(got[1], expected[1])
    assert (got[2]["1.weight"] - expected[2]["1.weight"]).abs().max() > 1e-6


@pytest.mark.parametrize("shards", [1, 2])
def test_resuming_continues_bit_for_bit(shards):
    rule = Reconciliation(weight=0.5, warmup=0.5)
    whole, resumed = (engine_of(rule, optimizer=MOMENTUM, shards=shards) for _ in range(2))
    train(whole, range(3), shards_of(shards))
    resumed.load_state_dict(snapshot(whole), 3)
    for engine in (whole, resumed):
        train(engine, range(3, 7), shards_of(shards))
    assert_same_state(snapshot(resumed), snapshot(whole))
