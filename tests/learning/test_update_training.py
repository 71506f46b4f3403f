"""Fused and proximal updates in learners: the same bits, the same sums, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.policies.fused import FusedUpdater
from learning.policies.proximal import ProximalPreconditioner
from learning.rules import (
    BackLink,
    Backprop,
    DelayedGradients,
    DirectAlignment,
    Interlocking,
    Local,
    Overlapping,
    PeriodicGuidance,
    Reconciliation,
    ReplayedLocal,
    Rule,
)
from learning.sequential import SequentialEngine
from learning.settings import (
    AdamWSettings,
    CosineSchedule,
    Int8CodecSettings,
    PrecisionSettings,
    SGDSettings,
    UpdateSettings,
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

FUSED, PROXIMAL = UpdateSettings(fused=True), UpdateSettings(proximal=0.5)
ADAMW, MOMENTUM = AdamWSettings(lr=0.02), SGDSettings(lr=0.1)
IMAGES = (2, 4, 4)
CHANNELS_LAST = PrecisionSettings(memory_format="channels-last")


def engine_of(rule: Rule, update: UpdateSettings, **settings: Any) -> SequentialEngine:
    """Three blocks of a little network in float64."""
    options = learner_settings(batch=8, update=update, **{"optimizer": MOMENTUM, **settings})
    return make_engine(rule, mlp(0), ["1.0", "2.0"], x=batch_of(0)[0], settings=options)


def image_engine_of(rule: Rule, update: UpdateSettings, **settings: Any) -> SequentialEngine:
    """Three blocks with convolutions and batch norm in float32."""
    options = learner_settings(batch=8, update=update, **settings)
    x = torch.zeros(1, *IMAGES)
    return make_engine(rule, convnet(0), ["1", "2.1"], x=x, settings=options)


def images_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
    x, y = shards_of(shape=IMAGES)(step, shard)
    return x.float(), y


ONE_LOSS: dict[str, Rule] = {
    "local": Local(),
    "backprop": Backprop(),
    "interlocking": Interlocking(),
    "guided": PeriodicGuidance(period=3),
    "delayed, weights": DelayedGradients(),
    "delayed, inputs": DelayedGradients(stash="inputs"),
    "replay": ReplayedLocal(buffer=2),
    "dfa": DirectAlignment(),
}


@pytest.mark.parametrize("precision", [PrecisionSettings(), CHANNELS_LAST], ids=["plain", "last"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ONE_LOSS)
def test_fused_ends_with_the_bits_of_the_plain_update(name, optimizer, precision) -> None:
    options = {"optimizer": optimizer, "precision": precision, "schedule": CosineSchedule()}
    engines = [image_engine_of(ONE_LOSS[name], u, **options) for u in (UpdateSettings(), FUSED)]
    assert isinstance(engines[1].blocks[0].updater, FusedUpdater)
    histories = [train(engine, range(8), images_of) for engine in engines]
    assert histories[0] == histories[1]
    assert_same_state(*(snapshot(engine) for engine in engines))
    assert any(n.startswith("optimizer.") for n in snapshot(engines[1])["block1"])
    for block in engines[1].blocks:
        assert all(p.grad is None for p in block.updater.parameters)


@pytest.mark.parametrize("update", [FUSED, PROXIMAL], ids=["fused", "proximal"])
@pytest.mark.parametrize("name", ONE_LOSS)
def test_resuming_half_way_ends_with_the_same_bits(name: str, update: UpdateSettings) -> None:
    whole, resumed = (
        image_engine_of(ONE_LOSS[name], update, optimizer=ADAMW, codec=Int8CodecSettings())
        for _ in range(2)
    )
    train(whole, range(5), images_of)
    train(resumed, range(2), images_of)  # something to forget
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()), 5)
    for engine in (whole, resumed):
        train(engine, range(5, 9), images_of)
    assert_same_state(snapshot(whole), snapshot(resumed))


REFUSED: dict[str, tuple[Rule, dict[str, Any], str]] = {
    "shards": (Local(), {"shards": 2}, r"training.shards = 2 gradients make a step"),
    "clip": (Local(), {"optimizer": SGDSettings(clip=1.0)}, r"optimizer.clip = 1.0 needs"),
    "proximal": (
        Local(),
        {"update": UpdateSettings(fused=True, proximal=2.0)},
        r"update.proximal = 2.0 solves",
    ),
    "overlapping": (Overlapping(), {}, r"2 losses reach a parameter"),
    "backlink": (BackLink(), {}, r"2 losses reach a parameter"),
    "reconcile": (Reconciliation(), {}, r"goes on computing with gradients"),
    "compensated": (DelayedGradients(compensation=0.5), {}, r"goes on computing with gradients"),
}


def check(rule: Rule, **settings: Any) -> None:
    options = learner_settings(batch=8, **{"update": FUSED, **settings})
    program = Program(rule, options, ((6,), (6,), (3,)), 3, input_shape=(4,))
    check_program(program, split(units_of(mlp(0)), ["1.0", "2.0"]), batch_of(0)[0])


@pytest.mark.parametrize("name", REFUSED)
def test_fused_is_refused_where_it_cannot_be_right(name: str) -> None:
    rule, settings, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        check(rule, **settings)
    check(rule, **settings | {"update": UpdateSettings()})


@pytest.mark.parametrize("name", ONE_LOSS)
def test_fused_is_allowed_elsewhere(name: str) -> None:
    check(ONE_LOSS[name])


@pytest.mark.parametrize("rule", [Local(), Overlapping(), Backprop(), Reconciliation()])
def test_proximal_steps_of_shards_differ_by_rounding(rule: Rule) -> None:
    engines = [engine_of(rule, PROXIMAL, shards=n) for n in (1, 4)]
    for engine, n in zip(engines, (1, 4), strict=True):
        train(engine, range(6), shards_of(n))
    assert_close(*(model_state(engine) for engine in engines))
    plain = engine_of(rule, UpdateSettings())
    train(plain, range(6), shards_of())
    assert (model_state(plain)["1.0.weight"] - model_state(engines[0])["1.0.weight"]).norm() > 1e-4


def expected_steps(engine: SequentialEngine, inputs: list[Tensor], got: dict) -> None:
    """Turn plain mean gradients of each block into proximal steps, in place."""
    for block, x, gradients in zip(engine.blocks, inputs, got.values(), strict=True):
        chain = block.chain
        proximal = ProximalPreconditioner(chain, 0.5)
        with proximal.recording() as moments:
            chain(x)
        named = {chain.original_name(n): p for n, p in chain.named_parameters()}
        by_parameter = dict[Tensor, Tensor]((p, gradients[n]) for n, p in named.items())
        proximal.apply(by_parameter, moments)
        gradients.update({n: by_parameter[p] for n, p in named.items()})


@pytest.mark.parametrize("rule", [Local(), Backprop(), Overlapping()])
@pytest.mark.parametrize("shards", [1, 4])
def test_observers_see_proximal_steps_of_the_blocks_layers(rule: Rule, shards: int) -> None:
    """Weighted losses add up before the step is solved for; the auxiliary network is left alone."""
    expected = gradients_of(engine_of(rule, UpdateSettings()), 0, shards_of())
    engine, inputs = engine_of(rule, UpdateSettings()), [batch_of(0)[0]]
    for block in engine.blocks[:-1]:
        inputs.append(block.chain(inputs[-1]).detach())
    expected_steps(engine, inputs, expected)
    got = gradients_of(engine_of(rule, PROXIMAL, shards=shards), 0, shards_of(shards))
    for k in (1, 2, 3):
        assert_close(got[k], expected[k])


@pytest.mark.parametrize("stash", ["weights", "inputs"])
def test_delayed_proximal_steps_use_the_inputs_of_their_gradients(stash: Any) -> None:
    """With a rate of 0 nothing moves, so a step late is the step of plain backprop."""
    still = SGDSettings(lr=0.0)
    engine = engine_of(DelayedGradients(stash=stash), PROXIMAL, optimizer=still)
    prompt = engine_of(Backprop(), PROXIMAL, optimizer=still)
    late = [gradients_of(engine, step, shards_of()) for step in range(5)]
    now = [gradients_of(prompt, step, shards_of()) for step in range(5)]
    for step in range(5):
        for k in (1, 2, 3):
            delay = 3 - k
            if step < delay:
                assert late[step][k] == {}  # no gradient, no update, no call
            else:
                assert_close(late[step][k], now[step - delay][k])


@pytest.mark.parametrize("stash", ["weights", "inputs"])
def test_delayed_proximal_shards_differ_by_rounding(stash: Any) -> None:
    engines = [engine_of(DelayedGradients(stash=stash), PROXIMAL, shards=n) for n in (1, 4)]
    for engine, n in zip(engines, (1, 4), strict=True):
        train(engine, range(6), shards_of(n))
    assert_close(*(model_state(engine) for engine in engines))


def test_fused_observers_see_every_parameter_once() -> None:
    """Also those of the auxiliary network, with the gradients of the plain update."""
    got = [
        gradients_of(engine_of(Interlocking(), u), 0, shards_of())
        for u in (FUSED, UpdateSettings())
    ]
    for k in (1, 2, 3):
        assert_same_bits(got[0][k], got[1][k])
    calls: list[str] = []
    engine = engine_of(Local(), FUSED)
    engine.blocks[0].updater.observer = lambda seen: calls.extend(seen)
    train(engine, range(1), shards_of())
    assert sorted(calls) == sorted(engine.blocks[0].updater.names)


@pytest.mark.parametrize("update", [FUSED, PROXIMAL, UpdateSettings()])
def test_updates_say_whether_anything_changed(update: UpdateSettings) -> None:
    engine = engine_of(DelayedGradients(), update)
    said: dict[int, list[bool]] = {1: [], 3: []}
    for k, answers in said.items():
        updater = engine.blocks[k - 1].updater
        inner = updater.step

        def step(number: int, partials: None, inner=inner, answers=answers) -> bool:
            answers.append(inner(number, partials))
            return answers[-1]

        updater.step = step  # type: ignore[method-assign]
    train(engine, range(4), shards_of())
    assert said == {1: [False, False, True, True], 3: [True] * 4}
