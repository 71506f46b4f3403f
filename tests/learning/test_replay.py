"""Replay: draws that are a function of the seed, labels that stay with their inputs, resuming."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learning.build import Program, build_block
from learning.rules import Local, ReplayedLocal, Rule
from learning.sequential import SequentialEngine
from learning.settings import SGDSettings
from learning.units import units_of
from tests.learning.helpers import (
    assert_close,
    assert_same_bits,
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


def engine_of(rule: Rule, seed: int = 0, **settings) -> SequentialEngine:
    settings = learner_settings(batch=8, **{"optimizer": MOMENTUM, **settings})
    model = mlp(seed, norm=True, dropout=0.2)
    return make_engine(rule, model, ["1.0", "2.0"], x=batch_of(0)[0], settings=settings)


def drawn(buffer: int, steps: int, *, seed: int = 0, k: int = 2) -> list[int]:
    """The steps whose message block k learned from and sent on, its unit being the identity."""
    settings = learner_settings(seed=seed, batch=2)
    program = Program(ReplayedLocal(buffer=buffer), settings, ((1,),) * 3, 2)
    learner = build_block(program, k, units_of(nn.Sequential(nn.Identity())))
    steps_drawn = []
    for step in range(steps):
        x, y = torch.full((2, 1), float(step)).double(), torch.tensor([step % 2, step // 2 % 2])
        (post,) = learner.forward(step, 0, {"x": x, "y": y})
        learner.assess(step, 0)
        (own,) = post.message["x"].unique().tolist()
        steps_drawn.append(int(own))
        assert post.message["y"].tolist() == [own % 2, own // 2 % 2]  # its labels went with it
        learner.update(step)
    return steps_drawn


@pytest.mark.parametrize("shards", [1, 2])
def test_a_buffer_of_one_is_local_learning(shards):
    states = []
    for rule in (ReplayedLocal(buffer=1), Local()):
        engine = engine_of(rule, shards=shards)
        metrics = train(engine, range(6), shards_of(shards))
        state = snapshot(engine)
        kept = {
            b: {n: t for n, t in s.items() if not n.startswith("replay.")} for b, s in state.items()
        }
        states.append((kept, metrics))
    assert_same_state(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_a_draw_is_one_of_the_last_messages_with_its_labels():
    steps = drawn(4, 400)
    ages = [now - then for now, then in enumerate(steps)]
    assert steps[0] == 0 and ages[1] in (0, 1)  # the ring fills first
    assert set(ages) == {0, 1, 2, 3}  # the oldest made place for the new one
    assert min(Counter(ages).values()) > 60  # each of the four alike


def test_draws_are_a_pure_function_of_seed_and_block():
    expected = drawn(4, 50)
    torch.manual_seed(99)
    torch.rand(7)
    assert drawn(4, 50) == expected
    assert drawn(4, 50, seed=1) != expected
    assert drawn(1, 50) == list(range(50))


def test_block_1_reads_the_data_itself():
    assert drawn(4, 20, k=1) == list(range(20))
    replayed, local = engine_of(ReplayedLocal()), engine_of(Local())
    for engine in (replayed, local):
        train(engine, range(6), shards_of())
    states = [snapshot(engine)["block1"] for engine in (replayed, local)]
    states[0].pop("replay.arrived")
    assert_same_bits(*states)
    second = [snapshot(engine)["block2"]["model.1.0.weight"] for engine in (replayed, local)]
    assert not torch.equal(*second)


def test_gradients_by_hand():
    """Rate 0: block 2's gradient is that of an earlier batch's activations and labels."""
    settings = learner_settings(batch=8, optimizer=SGDSettings(lr=0.0, momentum=0.0))
    engine = make_engine(
        ReplayedLocal(), mlp(0), ["1.0", "2.0"], x=batch_of(0)[0], settings=settings
    )
    (first, _), (second, head), _ = parts_of(engine)
    earlier = 0
    for step, then in enumerate(drawn(4, 12)):
        got = gradients_of(engine, step, shards_of())[2]
        x, y = batch_of(then)
        parameters = [*second.parameters(), *head.parameters()]
        h = second(first(x).detach())
        gradients = torch.autograd.grad(F.cross_entropy(head(h), y), parameters)
        n = len(list(second.parameters()))
        expected = named_like(second, gradients[:n]) | named_like(head, gradients[n:])
        assert_close(got, expected)
        earlier += then != step
    assert earlier > 3


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("at", [0, 2, 7])
def test_resuming_continues_bit_for_bit(at, shards):
    """Before the ring is full and after; the messages in it are a part of the state."""
    rule, shard_of = ReplayedLocal(buffer=5), shards_of(shards)
    whole, resumed = engine_of(rule, shards=shards), engine_of(rule, 1, shards=shards)
    train(whole, range(at), shard_of)
    state = snapshot(whole)
    train(whole, range(at, 12), shard_of)
    train(resumed, range(4), shards_of(shards, classes=2))  # something to forget
    resumed.load_state_dict(state, at)
    assert_same_state(snapshot(resumed), state)
    train(resumed, range(at, 12), shard_of)
    assert_same_state(snapshot(resumed), snapshot(whole))
    kept = {n.split(".")[1] for n in state["block2"] if n.startswith("replay.")} - {"arrived"}
    assert len(kept) == min(5, at * shards)
