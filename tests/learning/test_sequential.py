"""The sequential engine: resuming, the delay of feedback tables, and evaluation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.learners.feedback import FeedbackSettings
from learning.objectives.heads import HeadSettings
from learning.objectives.latents import LatentKind
from learning.objectives.readout import LatentSettings
from learning.rules import BLL, Backprop, Local, Rule
from learning.rules.bll import BootstrapSettings
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings, CosineSchedule, SGDSettings
from tests.learning.helpers import (
    assert_same_state,
    batch_of,
    convnet,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    shards_of,
    snapshot,
    train,
)

IMAGES = (2, 4, 4)
MOMENTUM = SGDSettings(lr=0.1)
KINDS: tuple[LatentKind, ...] = ("bernoulli", "gaussian", "gaussian-learned", "categorical")
FEEDBACKS = {
    "chain, delay 0": FeedbackSettings(delay=0),
    "chain, delay auto": FeedbackSettings(hidden=4),
    "direct, delay 2": FeedbackSettings(kind="direct", delay=2, optimizer=AdamWSettings(lr=0.01)),
}
RULES: dict[str, Rule] = {
    "backprop": Backprop(),
    "local, linear": Local(),
    "local, conv": Local(head=HeadSettings(kind="conv", width=4, pool=2)),
    **{
        f"bll, {kind}, {name}": BLL(
            latent=LatentSettings(kind=kind, states=2),
            feedback=feedback,
            bootstrap=BootstrapSettings(share=0.5, until=0.9),
        )
        for kind in KINDS
        for name, feedback in FEEDBACKS.items()
    },
}


def image_engine(rule: Rule, model: nn.Sequential, optimizer=MOMENTUM):
    settings = learner_settings(
        batch=8, shards=2, steps=10, optimizer=optimizer, schedule=CosineSchedule(warmup=0.2)
    )
    return make_engine(rule, model, ["1", "2.1"], x=torch.zeros(1, *IMAGES), settings=settings)


def assert_resumes(rule: Rule, *, norm: bool, optimizer=MOMENTUM) -> None:
    """Ten steps without a break end like five, a new engine with other weights, and five more."""
    shard_of = shards_of(2, shape=IMAGES)
    whole = image_engine(rule, convnet(0, norm=norm), optimizer)
    metrics = train(whole, range(5), shard_of)
    state = snapshot(whole)
    metrics = train(whole, range(5, 10), shard_of)
    resumed = image_engine(rule, convnet(1, norm=norm), optimizer)
    train(resumed, range(3), shards_of(2, shape=IMAGES, classes=2))  # something to forget
    resumed.load_state_dict(state, 5)
    assert_same_state(snapshot(resumed), state)
    assert train(resumed, range(5, 10), shard_of) == metrics
    assert_same_state(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_resuming_continues_bit_for_bit(rule, norm):
    assert_resumes(RULES[rule], norm=norm)


@pytest.mark.parametrize("rule", ["backprop", "local, conv", "bll, gaussian, chain, delay auto"])
def test_resuming_with_adamw_continues_bit_for_bit(rule):
    assert_resumes(RULES[rule], norm=True, optimizer=AdamWSettings(lr=0.01))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_resuming_before_the_first_delayed_table_was_used(at):
    rule, shard_of = RULES["bll, gaussian, chain, delay auto"], shards_of(2, shape=IMAGES)
    whole = image_engine(rule, convnet(0))
    train(whole, range(at), shard_of)
    state = snapshot(whole)
    train(whole, range(at, 8), shard_of)
    resumed = image_engine(rule, convnet(1))
    resumed.load_state_dict(state, at)
    train(resumed, range(at, 8), shard_of)
    assert_same_state(snapshot(resumed), snapshot(whole))


def independent_loop(
    first: nn.Linear, last: nn.Linear, table: Tensor, steps: int, delay: int, lr: float
) -> tuple[Tensor, ...]:
    """Two linear blocks, unit Gaussian latents, direct feedback: nothing but tensors.

    Returns:
        The first block's weight, the last block's, the feedback table and its bias.
    """
    w, bias_w = (p.detach().double() for p in (first.weight, first.bias))
    v, bias_v = (p.detach().double() for p in (last.weight, last.bias))
    b, c, tables = table.clone(), torch.zeros(3).double(), []
    temperature = 1 / math.sqrt(len(w))
    for step in range(steps):
        tables.append((b, c))
        x, y = batch_of(step)
        truth = F.one_hot(y, 3)
        h = x @ w.T + bias_w
        used_b, used_c = tables[max(0, step - delay)]

        def errors(b: Tensor, c: Tensor, h: Tensor = h, truth: Tensor = truth) -> Tensor:
            scores = c + temperature * (h @ b.T + b.square().sum(-1) / 2)
            return (torch.softmax(scores, -1) - truth) / len(h)

        to_h = temperature * errors(used_b, used_c) @ used_b
        now = errors(b, c)  # the feedback network learns on its current table
        to_b = temperature * (now.T @ h + now.sum(0)[:, None] * b)
        task = (torch.softmax(h @ v.T + bias_v, -1) - truth) / len(h)
        w, bias_w = w - lr * to_h.T @ x, bias_w - lr * to_h.sum(0)
        v, bias_v = v - lr * task.T @ h, bias_v - lr * task.sum(0)
        b, c = b - lr * to_b, c - lr * now.sum(0)
    return w, v, b, c


@pytest.mark.parametrize(("delay", "settings"), [(0, 0), (1, 1), (2, "auto"), (3, 3)])
def test_a_block_uses_the_table_of_step_t_minus_d(delay, settings):
    first, last = nn.Linear(4, 5), nn.Linear(5, 3)
    rule = BLL(
        latent=LatentSettings(normalization="none"),
        feedback=FeedbackSettings(kind="direct", delay=settings),
    )
    engine = make_engine(
        rule,
        nn.Sequential(first, last),
        ["1"],
        x=batch_of(0)[0],
        settings=learner_settings(batch=8, optimizer=SGDSettings(lr=0.5, momentum=0.0)),
    )
    assert engine.program.feedback_delay == delay
    module = engine.feedback[1].module
    table = module.layers[0].weight.detach().T.clone()
    train(engine, range(6), shards_of())
    state = model_state(engine)
    got = (state["0.weight"], state["1.weight"], module.layers[0].weight.T, module.bias)
    expected = independent_loop(first, last, table, 6, delay, 0.5)
    for tensor, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor.detach(), wanted, rtol=1e-10, atol=1e-12)
    other = independent_loop(first, last, table, 6, delay + 1, 0.5)
    assert (other[0] - expected[0]).abs().max() > 1e-6  # the delay shows


def trained(rule: Rule, steps: int = 3) -> SequentialEngine:
    engine = make_engine(
        rule,
        mlp(0, norm=True, dropout=0.2),
        ["1.0", "2.0"],
        x=batch_of(0)[0],
        settings=learner_settings(batch=8, optimizer=SGDSettings(lr=0.1)),
    )
    train(engine, range(steps), shards_of())
    return engine


def batches() -> list[tuple[Tensor, Tensor]]:
    """Batches of unequal size: a mean of means would be wrong."""
    return [batch_of(100, batch=9), batch_of(101, batch=9), batch_of(102, batch=4)]


def direct(engine: SequentialEngine, k: int, scores_of) -> dict[str, float]:
    """Loss and accuracy of block k over all rows at once."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        for block in engine.blocks[:k]:
            x = block.chain.eval()(x)
            block.chain.train()
        scores = scores_of(x)
    accuracy = (scores.argmax(-1) == y).double().mean()
    return {"loss": F.cross_entropy(scores, y).item(), "accuracy": accuracy.item()}


def test_evaluation_of_backprop_is_that_of_the_whole_network():
    engine = trained(Backprop())
    assert engine.evaluate(2, "test", iter(batches())) == {
        "block3": pytest.approx(direct(engine, 3, lambda h: h), rel=1e-12)
    }


def test_evaluation_of_every_block_equals_a_direct_computation():
    engine = trained(Local())
    got = engine.evaluate(2, "test", iter(batches()))
    assert sorted(got) == ["block1", "block2", "block3"]
    for k, block in enumerate(engine.blocks[:2], start=1):
        head = block.objective.head.linear
        expected = direct(engine, k, lambda h, head=head: F.linear(h, head.weight, head.bias))
        assert got[f"block{k}"] == pytest.approx(expected, rel=1e-12)
    assert got["block3"] == pytest.approx(direct(engine, 3, lambda h: h), rel=1e-12)


def test_evaluation_of_latents_equals_a_direct_computation():
    engine = trained(BLL(feedback=FeedbackSettings(delay=1)), steps=2)
    used = snapshot(engine)  # with a delay of 1, step 2 uses the table of step 1
    train(engine, range(2, 3), shards_of())
    got = engine.evaluate(2, "test", iter(batches()))
    for k in (1, 2):
        norm = engine.blocks[k - 1].objective.readout.norm
        b, c = (used[f"feedback{k}"][f"sent.table.1.0.0.2.block{k}.{name}"] for name in ("b", "c"))
        assert not torch.equal(
            b, snapshot(engine)[f"feedback{k}"][f"sent.table.2.0.0.3.block{k}.b"]
        )
        b = b[..., 0]

        def scores_of(h: Tensor, norm=norm, b: Tensor = b, c: Tensor = c) -> Tensor:
            n = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            return c + (n @ b.T + b.square().sum(-1) / 2) / math.sqrt(b.shape[1])

        assert got[f"block{k}"] == pytest.approx(direct(engine, k, scores_of), rel=1e-10)


@pytest.mark.parametrize("rule", [Backprop(), Local(), BLL()])
def test_evaluation_changes_nothing(rule: Rule):
    one, two = trained(rule), trained(rule)
    before = snapshot(one)
    first = one.evaluate(2, "test", iter(batches()))
    assert one.evaluate(2, "test", iter(batches())) == first  # and its tally starts anew
    assert_same_state(snapshot(one), before)
    train(one, range(3, 5), shards_of())
    train(two, range(3, 5), shards_of())
    assert_same_state(snapshot(one), snapshot(two))


def test_metrics_are_of_the_whole_batch_before_the_update():
    x, y = batch_of(0)
    settings = learner_settings(batch=8, shards=2)
    engine = make_engine(Backprop(), mlp(0), ["1.0"], x=x, settings=settings)
    metrics = engine.train_step(0, shards_of(2))
    scores = mlp(0).double()(x)
    assert metrics["block1"] == {}  # it forms no loss
    assert metrics["block2"]["loss"] == pytest.approx(F.cross_entropy(scores, y).item(), rel=1e-12)
    assert metrics["block2"]["accuracy"] == (scores.argmax(-1) == y).double().mean().item()


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (Local(), ["block1", "block2", "block3"]),
        (BLL(), ["block1", "block2", "block3", "feedback1", "feedback2"]),
    ],
)
def test_every_learner_with_a_loss_reports_it(rule: Rule, names):
    metrics = trained(rule).train_step(3, shards_of())
    assert sorted(name for name, values in metrics.items() if values) == names
