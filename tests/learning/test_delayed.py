"""Delayed gradients: a simulation by hand, the limits that are backprop, and resuming."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from learning.build import Program, build_block
from learning.checks import check_program
from learning.errors import UserError
from learning.rules import Backprop, DelayedGradients, Rule
from learning.settings import (
    AdamWSettings,
    BFloat16CodecSettings,
    CosineSchedule,
    Float16CodecSettings,
    Int8CodecSettings,
    PrecisionSettings,
    SGDSettings,
)
from learning.units import split, units_of
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
    model_state,
    shards_of,
    snapshot,
    train,
)

RATE, MOMENTUM = 0.2, SGDSettings(lr=0.2, momentum=0.9)
AT = {3: ["1.0", "2.0"], 4: ["1.0", "2.0", "3"]}
STASHES: Any = ["weights", "inputs"]
CODECS = [BFloat16CodecSettings(), Float16CodecSettings(), Int8CodecSettings()]


def engine_of(rule: Rule, blocks: int = 3, model: nn.Sequential | None = None, **settings):
    settings = learner_settings(batch=8, **{"optimizer": MOMENTUM, **settings})
    return make_engine(rule, model or mlp(0), AT[blocks], x=batch_of(0)[0], settings=settings)


def simulate(chains: list[nn.Module], steps: int, rule: DelayedGradients) -> None:
    """Train `chains` in place: nothing but a history of copies, of inputs and of messages."""
    last = len(chains)
    history, inputs, messages = [], [], {}
    momenta: dict[Tensor, Tensor] = {}
    for step in range(steps):
        h = batch_of(step)[0]
        history.append(copy.deepcopy(chains))
        inputs.append([h])
        for chain in chains:
            h = chain(h.detach())
            inputs[-1].append(h.detach())
        updates: dict[Tensor, Tensor] = {}
        for k in range(last, 0, -1):
            old = step - rule.lag * (last - k)
            if old < 0:
                continue
            chain = (history[old] if rule.stash == "weights" else chains)[k - 1]
            x = inputs[old][k - 1].clone().requires_grad_()
            out, leaves = chain(x), [*chain.parameters(), x]
            if k == last:
                *grads, back = torch.autograd.grad(F.cross_entropy(out, batch_of(old)[1]), leaves)
            else:
                *grads, back = torch.autograd.grad(out, leaves, messages.pop((old, k)))
            messages[old, k - 1] = back
            for now, then, g in zip(chains[k - 1].parameters(), leaves, grads, strict=False):
                updates[now] = g + rule.compensation * g * g * (now - then).detach()
        with torch.no_grad():
            for parameter, g in updates.items():
                old_momentum = momenta.get(parameter, torch.zeros(()))
                momenta[parameter] = 0.9 * old_momentum + g
                parameter -= RATE * momenta[parameter]


@pytest.mark.parametrize("blocks", [3, 4])
@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize(
    ("stash", "compensation"), [("weights", 0.0), ("weights", 2.0), ("inputs", 0.0)]
)
def test_training_by_hand(stash, compensation, lag, blocks):
    rule = DelayedGradients(lag=lag, stash=stash, compensation=compensation)
    engine = engine_of(rule, blocks)
    chains = [copy.deepcopy(block.chain) for block in engine.blocks]
    train(engine, range(10), shards_of())
    simulate(chains, 10, rule)
    expected = {n: t for chain in chains for n, t in chain.original_state().items()}
    assert_close(model_state(engine), expected)


def test_the_three_forms_differ():
    states = []
    for more in ({}, {"stash": "inputs"}, {"compensation": 2.0}, {"lag": 2}, {"lag": 0}):
        engine = engine_of(DelayedGradients(**more))
        train(engine, range(8), shards_of())
        states.append(model_state(engine)["0.0.weight"])
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(states) for b in states[:i])


@pytest.mark.parametrize("shards", [1, 2])
def test_shards_only_change_rounding(shards):
    """Both stashes: the gradients of shards meet in the step in which they arrive."""
    for stash in STASHES:
        engines = [engine_of(DelayedGradients(stash=stash), shards=n) for n in (1, shards)]
        for engine, n in zip(engines, (1, shards), strict=True):
            train(engine, range(6), shards_of(n))
        assert_close(model_state(engines[0]), model_state(engines[1]))


@pytest.mark.parametrize("stash", STASHES)
def test_no_lag_is_backprop(stash):
    states = []
    for rule in (DelayedGradients(lag=0, stash=stash), Backprop()):
        engine = engine_of(rule, model=mlp(0, norm=True, dropout=0.2), shards=2)
        train(engine, range(5), shards_of(2))
        states.append(snapshot(engine))
    assert_same_state(*states)


@pytest.mark.parametrize("stash", STASHES)
def test_one_block_is_backprop(stash):
    states = []
    for rule in (DelayedGradients(lag=3, stash=stash), Backprop()):
        settings = learner_settings(batch=8, optimizer=MOMENTUM)
        engine = make_engine(rule, mlp(0), [], x=batch_of(0)[0], settings=settings)
        train(engine, range(5), shards_of())
        states.append(snapshot(engine))
    assert_same_state(*states)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("lag", [1, 2])
def test_without_movement_replayed_inputs_are_stashed_graphs(lag, shards):
    """Rate 0, with dropout and batch statistics: the same masks, counted once, the same bits."""
    engines = [
        engine_of(
            DelayedGradients(lag=lag, stash=stash),
            model=mlp(0, norm=True, dropout=0.4),
            optimizer=SGDSettings(lr=0.0),
            shards=shards,
        )
        for stash in STASHES
    ]
    for step in range(8):
        weights, inputs = (gradients_of(e, step, shards_of(shards)) for e in engines)
        for k in (1, 2, 3):
            assert_same_bits(weights[k], inputs[k])
            assert bool(weights[k]) is (step >= lag * (3 - k))  # no gradient came before that
    assert_same_bits(model_state(engines[0]), model_state(engines[1]))


@pytest.mark.parametrize("stash", STASHES)
def test_statistics_count_a_batch_once(stash):
    """And as it is seen going forward: those of block 1 are a function of its weights then."""
    engine = engine_of(DelayedGradients(stash=stash), model=mlp(0, norm=True))
    mean = torch.zeros(6, dtype=torch.float64)
    for step in range(7):
        layer = engine.blocks[0].chain.units[0]
        with torch.no_grad():
            mean = 0.9 * mean + 0.1 * layer(batch_of(step)[0]).mean(0)
        train(engine, range(step, step + 1), shards_of())
    state = model_state(engine)
    counts = [t.item() for n, t in state.items() if n.endswith("num_batches_tracked")]
    assert counts == [7, 7, 7]
    torch.testing.assert_close(state["0.1.running_mean"], mean)


@pytest.mark.parametrize("stash", STASHES)
@pytest.mark.parametrize("blocks", [3, 4])
@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("shards", [1, 2])
def test_resuming_continues_bit_for_bit(shards, lag, blocks, stash):
    """Wherever the run is cut: before the first gradient came, and in full flow."""
    rule, shard_of = DelayedGradients(lag=lag, stash=stash), shards_of(shards)
    options: Any = {"shards": shards, "schedule": CosineSchedule(), "steps": 12}
    whole = engine_of(rule, blocks, mlp(0, norm=True, dropout=0.3), **options)
    states = [snapshot(whole)]
    for step in range(10):
        train(whole, range(step, step + 1), shard_of)
        states.append(snapshot(whole))
    for step in (0, 1, 2, 5, 9):
        resumed = engine_of(rule, blocks, mlp(1, norm=True, dropout=0.3), **options)
        train(resumed, range(3), shards_of(shards, classes=2))  # something to forget
        resumed.load_state_dict(states[step], step)
        assert_same_state(snapshot(resumed), states[step])
        train(resumed, range(step, 10), shard_of)
        assert_same_state(snapshot(resumed), states[10])


@pytest.mark.parametrize("stash", STASHES)
@pytest.mark.parametrize("precision", ["bfloat16", "channels-last"])
def test_resuming_images_continues_bit_for_bit(precision, stash):
    numerics = (
        PrecisionSettings(compute="bfloat16")
        if precision == "bfloat16"
        else PrecisionSettings(memory_format="channels-last")
    )

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, y = batch_of(step, shape=(2, 4, 4))
        return x.float(), y

    engines = []
    for seed in (0, 1):
        settings = learner_settings(
            batch=8, optimizer=AdamWSettings(lr=0.01), precision=numerics, steps=8
        )
        rule = DelayedGradients(stash=stash)
        engines.append(
            make_engine(
                rule, convnet(seed), ["1", "2.1"], x=torch.zeros(1, 2, 4, 4), settings=settings
            )
        )
    whole, resumed = engines
    train(whole, range(4), shard_of)
    resumed.load_state_dict(snapshot(whole), 4)
    for engine in engines:
        train(engine, range(4, 8), shard_of)
    assert_same_state(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("stash", STASHES)
def test_the_state_has_only_what_is_still_to_come(stash):
    engine = engine_of(DelayedGradients(stash=stash))
    train(engine, range(6), shards_of())
    state = snapshot(engine)
    pending = {b: sorted(n for n in state[b] if n.startswith("pending")) for b in state}
    assert pending["block1"] == [f"pending.{step}.0.{n}" for step in (4, 5) for n in "xy"]
    assert pending["block2"] == [f"pending.5.0.{n}" for n in "xy"] and not pending["block3"]
    stashed = {int(n.split(".")[1]) for n in state["block1"] if n.startswith("stashed")}
    assert stashed == ({4, 5} if stash == "weights" else set())
    sent = {b: [n for n in state[b] if n.startswith("sent")] for b in state}
    assert sent["block3"] == ["sent.g.5.0.3.6.block2.gradient"]
    assert sent["block2"] == ["sent.g.4.0.3.6.block1.gradient"] and not sent["block1"]


@pytest.mark.parametrize("more", [{}, {"stash": "inputs"}, {"compensation": 0.5}])
def test_frozen_parameters_and_blocks_without_any(more):
    """Block 1 has nothing to learn, block 2 a frozen layer: both run, and stay as they are."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
    )
    model[2].weight.requires_grad_(False)
    settings = learner_settings(batch=8, optimizer=MOMENTUM)
    engine = make_engine(
        DelayedGradients(**more), model, ["1", "4"], x=batch_of(0)[0], settings=settings
    )
    before = model_state(engine)
    train(engine, range(4), shards_of())
    changed = {n for n, t in model_state(engine).items() if not torch.equal(t, before[n])}
    assert changed == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_a_correction_needs_the_weights_of_the_forward_pass():
    with pytest.raises(ValidationError, match=r"compensation = 0.5 needs the weights .* inputs"):
        DelayedGradients(stash="inputs", compensation=0.5)


def test_a_correction_needs_the_whole_batch():
    blocks = split(units_of(mlp(0)), AT[3])
    shapes = ((6,), (6,), (3,))
    settings = learner_settings(batch=8, shards=2)
    program = Program(DelayedGradients(compensation=0.5), settings, shapes, 3)
    with pytest.raises(UserError, match=r"training.shards = 2: set training.shards to 1 or"):
        check_program(program, blocks, torch.zeros(4, 4))


def test_only_blocks_with_a_delay_keep_anything():
    program = Program(DelayedGradients(lag=2), learner_settings(), ((6,), (6,), (3,)), 3)
    learners = [build_block(program, k, ()) for k in (1, 2, 3)]
    assert [learner.delay for learner in learners] == [4, 2, 0]
    kinds = [type(learner).__name__ for learner in learners]
    assert kinds == ["DelayedBlock", "DelayedBlock", "BlockLearner"]


@pytest.mark.parametrize("stash", STASHES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.kind)
def test_resuming_with_coded_messages_continues_bit_for_bit(codec, stash):
    """What a block kept is coded in its state as it was on the way, and decodes to the same."""
    settings = replace(learner_settings(batch=8, optimizer=MOMENTUM), codec=codec)
    whole, resumed = (
        make_engine(
            DelayedGradients(stash=stash, lag=2), mlp(0), AT[4], x=batch_of(0)[0], settings=settings
        )
        for _ in range(2)
    )
    train(whole, range(7), shards_of())
    state = snapshot(whole)
    resumed.load_state_dict(state, 7)
    assert_same_state(snapshot(resumed), state)
    for engine in (whole, resumed):
        train(engine, range(7, 14), shards_of())
    assert_same_state(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("stash", STASHES)
def test_a_twin_made_of_the_state_shares_nothing(stash):
    engine, twin = (
        engine_of(DelayedGradients(lag=2, stash=stash), model=mlp(0, norm=True)) for _ in range(2)
    )
    train(engine, range(5), shards_of())
    before = snapshot(engine)
    twin.load_state_dict(engine.state_dict(), 5)
    train(twin, range(5, 8), shards_of())
    assert_same_state(snapshot(engine), before)
    train(engine, range(5, 8), shards_of())
    assert_same_state(snapshot(engine), snapshot(twin))
