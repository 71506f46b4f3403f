"""Periodic guidance: its two phases are backprop and local learning, and heads rest when guided."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from learning.rules import Backprop, Local, PeriodicGuidance, Rule
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings, SGDSettings
from tests.learning.helpers import (
    assert_close,
    assert_same_bits,
    assert_same_state,
    batch_of,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    parts_of,
    shards_of,
    snapshot,
    train,
)

MOMENTUM = SGDSettings(lr=0.2, weight_decay=0.01)
RATE = 0.5


def engine_of(rule: Rule, optimizer=MOMENTUM, **settings) -> SequentialEngine:
    settings = learner_settings(batch=8, optimizer=optimizer, **settings)
    return make_engine(rule, mlp(0), ["1.0", "2.0"], x=batch_of(0)[0], settings=settings)


@pytest.mark.parametrize("shards", [1, 2])
def test_guided_all_the_time_is_backprop(shards):
    states = []
    for rule in (PeriodicGuidance(period=1, guided=1), PeriodicGuidance(period=3, guided=3)):
        engine = engine_of(rule, shards=shards)
        assert all(block.objective is None for block in engine.blocks[:-1])  # no idle heads
        train(engine, range(5), shards_of(shards))
        states.append(snapshot(engine))
    backprop = engine_of(Backprop(), shards=shards)
    train(backprop, range(5), shards_of(shards))
    for state in states:
        assert_same_state(state, snapshot(backprop))


def test_a_guided_step_is_backprops_and_leaves_heads_and_their_momentum():
    """Period 4, guided 2: local steps 2 and 3 fill the optimizer, then come two guided ones."""
    engine = engine_of(PeriodicGuidance(period=4, guided=2), AdamWSettings(lr=0.01))
    train(engine, range(4), shards_of())
    before = snapshot(engine)
    metrics = train(engine, range(4, 6), shards_of())
    after = snapshot(engine)
    for name, state in before.items():
        heads = {n: t for n, t in state.items() if "auxiliary" in n}
        assert_same_bits(heads, {n: after[name][n] for n in heads})
    assert metrics[0]["block1"] == metrics[1]["block2"] == {}
    assert metrics[0]["block3"]["loss"] > 0


def test_the_first_guided_steps_are_backprop():
    guided, backprop = engine_of(PeriodicGuidance(period=9, guided=3)), engine_of(Backprop())
    for engine in (guided, backprop):
        train(engine, range(3), shards_of())
    assert_same_bits(model_state(guided), model_state(backprop))


@pytest.mark.parametrize("optimizer", [MOMENTUM, AdamWSettings(lr=0.01)])
def test_a_local_phase_is_local_learning(optimizer):
    """Steps 1, 2, 3 of a period of four, from one common state."""
    guided, local = (engine_of(r, optimizer) for r in (PeriodicGuidance(period=4), Local()))
    train(local, range(1), shards_of())
    state = snapshot(local)
    guided.load_state_dict(state, 1)
    for engine in (guided, local):
        train(engine, range(1, 4), shards_of())
    assert_same_state(snapshot(guided), snapshot(local))


def test_three_steps_by_hand():
    """Period 3: step 0 guided, steps 1 and 2 local; plain gradient descent on copies."""
    engine = engine_of(PeriodicGuidance(period=3), SGDSettings(lr=RATE, momentum=0.0))
    parts = parts_of(engine)
    train(engine, range(3), shards_of())
    for step in range(3):
        h, y = batch_of(step)
        loss = torch.zeros(())
        for chain, head in parts:
            h = chain(h)
            if head is None:
                loss = loss + F.cross_entropy(h, y)
            elif step > 0:
                loss = loss + F.cross_entropy(head(h), y)
                h = h.detach()
        learning = [p for part in parts for module in part if module for p in module.parameters()]
        gradients = torch.autograd.grad(loss, learning, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(learning, gradients, strict=True):
                if gradient is not None:
                    parameter -= RATE * gradient
    expected = {n: t for chain, _ in parts for n, t in chain.original_state().items()}
    assert_close(model_state(engine), expected)
    for block, (_, head) in zip(engine.blocks[:-1], parts[:-1], strict=True):
        assert_close(block.objective.head.state_dict(), head.state_dict())


@pytest.mark.parametrize("step", [2, 3, 4])
def test_resuming_within_a_phase(step):
    rule = PeriodicGuidance(period=4, guided=2)
    whole, resumed = engine_of(rule), engine_of(rule)
    train(whole, range(step), shards_of())
    resumed.load_state_dict(snapshot(whole), step)
    for engine in (whole, resumed):
        train(engine, range(step, 8), shards_of())
    assert_same_state(snapshot(resumed), snapshot(whole))


def test_more_guidance_than_period_is_refused():
    with pytest.raises(ValidationError, match=r"rule.guided = 3 is more than rule.period = 2"):
        PeriodicGuidance(period=2, guided=3)
