"""Feedback learners: their gradients against finite differences, shards, delays and state."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from learning.errors import NonFiniteLossError
from learning.learners.feedback import FeedbackLearner, FeedbackModule, FeedbackSettings, table_step
from learning.messages import Key, Message
from learning.objectives.latents import LatentKind, label_loss, make_family
from learning.objectives.tables import EvidenceLoss
from learning.settings import AdamWSettings, SGDSettings
from tests.learning.helpers import PLAIN_SGD, assert_same_bits, learner_settings

CLASSES, UNITS, STATES, ABOVE, BATCH = 3, 2, 3, 5, 8
KINDS: list[LatentKind] = ["bernoulli", "gaussian", "gaussian-learned", "categorical"]
TEMPERATURE = 0.6


def make(
    kind: LatentKind = "gaussian",
    *,
    chain: bool = False,
    hidden: int | None = None,
    delay: int = 0,
    shards: int = 1,
    seed: int = 0,
    index: int = 1,
    optimizer: SGDSettings | AdamWSettings = PLAIN_SGD,
) -> FeedbackLearner:
    """A learner whose plain SGD step of rate 1 is minus the gradient of the mean loss."""
    family = make_family(kind, STATES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = FeedbackModule(
            FeedbackSettings(hidden=hidden),
            classes=CLASSES,
            size=ABOVE if chain else None,
            units=UNITS,
            family=family,
        )
        torch.nn.init.normal_(module.bias)
    settings = learner_settings(batch=BATCH, shards=shards, optimizer=optimizer)
    loss = EvidenceLoss(family, TEMPERATURE)
    return FeedbackLearner(index, module, loss, delay, chain, settings)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def readout(kind: LatentKind, seed: int = 7) -> Message:
    family = make_family(kind, STATES)
    # Parameters of alpha are made by the same map as those of beta, which keeps them valid.
    a = family.feedback(random(BATCH, UNITS, family.parameters, seed=seed))
    return {"a": a, "y": torch.arange(BATCH) % CLASSES}


def upstream(chain: bool, seed: int = 9) -> Message | None:
    return {"raw": random(CLASSES, ABOVE, 1, seed=seed)} if chain else None


def step_once(
    learner: FeedbackLearner, message: Message, source: Message | None, step: int = 0
) -> float:
    """One whole step, in as many shards as the learner's settings say."""
    learner.forward(step, source)
    shards = learner.settings.shards
    for shard in range(shards):
        part = {name: tensor.chunk(shards)[shard] for name, tensor in message.items()}
        learner.receive(step, shard, part)
    return learner.update(step)["loss"]


def weights(learner: FeedbackLearner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.module.named_parameters()}


@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind: LatentKind, chain, hidden):
    learner, message, source = (
        make(kind, chain=chain, hidden=hidden),
        readout(kind),
        upstream(chain),
    )
    module, family = learner.module, make_family(kind, STATES)

    @torch.no_grad()
    def mean_loss() -> float:
        raw = module(None if source is None else source["raw"])
        score = family.score(message["a"], family.feedback(raw))
        return float(label_loss(score, module.bias, message["y"], TEMPERATURE)) / BATCH

    expected, step = {}, 1e-6
    for name, parameter in module.named_parameters():
        slope = torch.zeros_like(parameter)
        for i in range(parameter.numel()):
            flat, value = parameter.detach().view(-1), float(parameter.detach().view(-1)[i])
            flat[i] = value + step
            up = mean_loss()
            flat[i] = value - step
            slope.view(-1)[i] = (up - mean_loss()) / (2 * step)
            flat[i] = value
        expected[name] = slope
    before, loss = weights(learner), mean_loss()
    assert step_once(learner, message, source) == pytest.approx(loss, rel=1e-12)
    for name, after in weights(learner).items():
        torch.testing.assert_close(before[name] - after, expected[name], rtol=1e-6, atol=1e-8)
    assert any((slope.abs() > 1e-3).any() for slope in expected.values())


def test_direct_gaussian_feedback_by_hand():
    learner = make()
    table, message = learner.module.layers[0].weight.detach().T.clone(), readout("gaussian")
    bias, a, y = learner.module.bias.detach().clone(), message["a"][..., 0], message["y"]
    scores = bias + TEMPERATURE * (a @ table.T + table.square().sum(-1) / 2)
    error = torch.softmax(scores, -1) - torch.eye(CLASSES).double()[y]
    # d/db(y') = temperature (P(y') - 1[y'=y]) (a + b(y')), summed over samples.
    to_table = TEMPERATURE * (error.T @ a + error.sum(0)[:, None] * table)
    step_once(learner, message, None)
    after = learner.module.layers[0].weight.detach().T
    torch.testing.assert_close(after, table - to_table / BATCH, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(learner.module.bias.detach(), bias - error.sum(0) / BATCH)


def test_the_message_is_the_family_s_table_and_constant():
    learner = make("gaussian-learned", chain=True, index=2)
    table, below = learner.forward(0, upstream(True))
    assert (table.to, table.key) == ("block2", Key("table", 0))
    assert (below.to, below.key) == ("feedback1", Key("raw", 0))
    message, above = table.message, below.message
    assert message["b"].shape == (CLASSES, UNITS, 2) and message["c"].shape == (CLASSES,)
    assert (message["b"][..., 1] < 0).all()
    assert torch.equal(learner.module.family.feedback(above["raw"]), message["b"])
    sent = [*message.values(), above["raw"]]
    assert not any(tensor.requires_grad for tensor in sent)
    before = message["c"].clone()
    with torch.no_grad():
        learner.module.bias += 1
    assert torch.equal(message["c"], before)  # a table under way does not follow the weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_readout_is_a_constant(kind: LatentKind):
    learner, message = make(kind), readout(kind)
    message["a"].requires_grad_()
    step_once(learner, message, None)
    assert message["a"].grad is None


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_change_nothing_but_rounding(kind: LatentKind, chain):
    results = []
    for shards in (1, 2, 4):
        learner = make(kind, chain=chain, shards=shards)
        loss = step_once(learner, readout(kind), upstream(chain))
        results.append(weights(learner) | {"loss": torch.tensor(loss, dtype=torch.float64)})
    before = weights(make(kind, chain=chain))
    for result in results[1:]:
        for name, tensor in result.items():
            torch.testing.assert_close(tensor, results[0][name], rtol=1e-12, atol=1e-13)
    assert all(not torch.equal(results[0][name], tensor) for name, tensor in before.items())


def test_rows_start_with_the_variance_that_scale_asks_for():
    for size, hidden in ((None, None), (300, None), (None, 200), (300, 200)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = FeedbackModule(
                FeedbackSettings(hidden=hidden, scale=0.5),
                classes=10,
                size=size,
                units=400,
                family=make_family("gaussian", STATES),
            )
            table = module(None if size is None else 3 * torch.randn(10, size, 1))
        assert table.std().item() == pytest.approx(0.5, rel=0.15), (size, hidden)


def test_table_step():
    assert [table_step(t, 0) for t in range(4)] == [0, 1, 2, 3]
    assert [table_step(t, 2) for t in range(6)] == [0, 0, 0, 1, 2, 3]


def test_a_negative_delay_is_refused():
    with pytest.raises(ValidationError, match="delay"):
        FeedbackSettings(delay=-1)


@pytest.mark.parametrize(
    ("delay", "first", "last"),
    [
        (0, [], []),
        (1, [0], [5]),
        (3, [0], [3, 4, 5]),
        (9, [0], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_pending_tables_are_those_still_to_be_used(delay, first, last):
    learner = make(delay=delay)
    sent: dict[int, Message] = {}
    for step in range(6):
        sent[step] = learner.forward(step, None)[0].message
        with torch.no_grad():
            learner.module.bias += 1  # so that tables differ
        if step == 0:
            assert [post.key.step for post in learner.in_flight.from_step(1)] == first
    pending = {post.key.step: post.message for post in learner.in_flight.from_step(6)}
    assert list(pending) == last
    assert {table_step(t, delay) for t in range(6, 20)} & set(range(6)) == set(last)
    for step, message in pending.items():
        assert_same_bits(message, sent[step])


@pytest.mark.parametrize("optimizer", [SGDSettings(lr=0.1), AdamWSettings(lr=0.1)])
def test_state_round_trip_continues_bit_for_bit(optimizer):
    learner = make(chain=True, delay=2, optimizer=optimizer)
    for step in range(3):
        step_once(learner, readout("gaussian", step), upstream(True, step), step)
    state = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    assert {n for n in state if n.startswith("sent.")} == {
        f"sent.table.{i}.0.0.{i + 2}.block1.{n}" for i in (1, 2) for n in ("b", "c")
    }
    kept = {name: tensor.clone() for name, tensor in state.items()}
    other = make(chain=True, delay=2, optimizer=optimizer, seed=1)
    step_once(other, readout("gaussian", 50), upstream(True, 50))
    other.load_state_dict(state)
    assert_same_bits(other.state_dict(), kept)
    for step in (3, 4):
        for one in (learner, other):
            step_once(one, readout("gaussian", step), upstream(True, step), step)
    assert_same_bits(other.state_dict(), learner.state_dict())
    assert_same_bits(state, kept)  # loading copied: training on did not write into the state


def test_a_non_finite_loss_is_refused_before_the_update():
    learner, message = make(), readout("gaussian")
    before = weights(learner)
    message["a"][0] = math.nan
    with pytest.raises(NonFiniteLossError, match="loss of block 1 is nan at step 4"):
        step_once(learner, message, None, step=4)
    assert_same_bits(weights(learner), before)
