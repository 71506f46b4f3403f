"""Rule settings and training settings that cannot be right together are refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.objectives.heads import HeadSettings
from learning.rules import (
    BLL,
    Alignment,
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
    TargetAlignment,
)
from learning.settings import AdamWSettings, SGDSettings, UpdateSettings
from learning.units import split, units_of
from tests.learning.helpers import (
    assert_close,
    assert_same_state,
    batch_of,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    shards_of,
    snapshot,
    train,
)

AT, SHAPES = ["1.0", "2.0"], ((6,), (6,), (3,))
FUSED = UpdateSettings(fused=True)
CONV = HeadSettings(kind="conv", width=4)
ONE_LOSS: list[Rule] = [
    Backprop(),
    Local(),
    BLL(),
    Interlocking(reach=2),
    Interlocking(reach=3),
    PeriodicGuidance(period=3, guided=2),
    DelayedGradients(),
    DelayedGradients(stash="inputs", lag=2),
    ReplayedLocal(),
    Alignment(),
    DirectAlignment(),
    TargetAlignment(),
]
TWO_LOSSES: list[Rule] = [Overlapping(), BackLink(), BackLink(units=9)]


def name_of(rule: Rule) -> str:
    changed = rule.model_dump(exclude_defaults=True)
    return " ".join([type(rule).__name__, *(f"{n}={v}" for n, v in changed.items())])


def check(rule: Rule, update: UpdateSettings | None = None, **settings: Any) -> None:
    learner = learner_settings(**{"batch": 8, **settings})
    program = Program(rule, replace(learner, update=update or UpdateSettings()), SHAPES, 3)
    check_program(program, split(units_of(mlp(0)), AT), torch.randn(8 // learner.shards, 4))


FUSED_TWICE = r"under this rule 2 losses reach a parameter: use a rule with one, or update.fused"
FUSED_SECOND = r"this rule goes on computing with gradients: use another rule.kind or update.fused"
WRONG: list[tuple[Rule, dict[str, Any], str]] = [
    (
        DelayedGradients(compensation=0.5),
        {"shards": 2},
        r"compensation .* training.shards = 2: set training.shards to 1 or rule.compensation to 0",
    ),
    (DelayedGradients(compensation=0.5), {"update": FUSED}, FUSED_SECOND),
    (Reconciliation(), {"update": FUSED}, FUSED_SECOND),
    (Reconciliation(bp_free=True), {"update": FUSED}, FUSED_SECOND),
    *((rule, {"update": FUSED}, FUSED_TWICE) for rule in TWO_LOSSES),
    *(
        (rule, {"update": FUSED, "shards": 4}, r"fused = true .* training.shards = 4 gradients")
        for rule in (Local(), DelayedGradients(), ReplayedLocal(), DirectAlignment())
    ),
    (
        PeriodicGuidance(),
        {"update": FUSED, "optimizer": SGDSettings(clip=0.5)},
        r"optimizer.clip = 0.5 needs their norm: use optimizer.clip = null or update.fused = false",
    ),
    (
        TargetAlignment(),
        {"update": UpdateSettings(fused=True, proximal=0.1)},
        r"update.proximal = 0.1 solves for weight and bias together",
    ),
    *(
        (rule, {"shards": 8}, r"block 1 cannot work on 1 samples .* use fewer training.shards")
        for rule in (Overlapping(head=CONV), BackLink(head=CONV), ReplayedLocal(head=CONV))
    ),
    *(
        (rule, {"optimizer": AdamWSettings(lr=(0.1, 0.2))}, r"lists 2 values for 3 blocks")
        for rule in (Alignment(), Reconciliation(), PeriodicGuidance())
    ),
]


@pytest.mark.parametrize(
    ("rule", "settings", "sentence"),
    WRONG,
    ids=[f"{name_of(rule)} {' '.join(settings)}" for rule, settings, _ in WRONG],
)
def test_wrong_combinations(rule, settings, sentence):
    check(rule)  # by itself it is fine
    with pytest.raises(UserError, match=sentence):
        check(rule, **settings)


@pytest.mark.parametrize("rule", [*ONE_LOSS, *TWO_LOSSES, Reconciliation()], ids=name_of)
def test_every_rule_takes_shards_and_proximal_steps(rule):
    check(rule, UpdateSettings(proximal=0.1), shards=2)


UNCUT = [rule for rule in ONE_LOSS if not isinstance(rule, BLL | ReplayedLocal)]


@pytest.mark.parametrize(
    "rule", [*UNCUT, ReplayedLocal(buffer=1), *TWO_LOSSES, Reconciliation()], ids=name_of
)
def test_no_rule_depends_on_how_a_batch_is_cut(rule):
    """Gradients and moments of shards add up to those of the batch.

    But not under BLL, which normalises over a shard, and replay, whose buffer holds shards.
    """
    states = []
    for shards in (1, 2):
        settings = learner_settings(batch=8, shards=shards, optimizer=SGDSettings(lr=0.2))
        settings = replace(settings, update=UpdateSettings(proximal=0.5))
        engine = make_engine(rule, mlp(0), AT, x=batch_of(0)[0], settings=settings)
        train(engine, range(6), shards_of(shards))
        states.append(model_state(engine))
    assert_close(*states)


@pytest.mark.parametrize("rule", ONE_LOSS, ids=name_of)
def test_fused_updates_change_no_bit_of_what_they_are_allowed_for(rule):
    check(rule, FUSED)
    states = []
    for update in (UpdateSettings(), FUSED):
        settings = replace(learner_settings(batch=8, optimizer=SGDSettings(lr=0.2)), update=update)
        engine = make_engine(rule, mlp(0), AT, x=batch_of(0)[0], settings=settings)
        train(engine, range(8), shards_of())
        states.append(snapshot(engine))
    assert_same_state(*states)


@pytest.mark.parametrize("rule", [*ONE_LOSS, *TWO_LOSSES, Reconciliation(warmup=0)], ids=name_of)
def test_two_runs_end_with_the_same_bits(rule):
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        settings = learner_settings(batch=8, shards=2, optimizer=AdamWSettings(lr=0.01))
        model = mlp(0, norm=True, dropout=0.2)
        engine = make_engine(rule, model, AT, x=batch_of(0)[0], settings=settings)
        train(engine, range(6), shards_of(2))
        states.append(snapshot(engine))
    assert_same_state(*states)


def test_batch_statistics_of_one_sample_are_refused() -> None:
    """Batch normalisation needs two samples; without it one is enough."""
    blocks = split(units_of(mlp(0, norm=True)), AT)
    program = Program(Local(), learner_settings(batch=8, shards=8), SHAPES, 3)
    with pytest.raises(
        UserError, match=r"block 1 cannot train on a shard of 1 sample .* fewer training"
    ):
        check_program(program, blocks, torch.randn(1, 4))
    check_program(program, split(units_of(mlp(0)), AT), torch.randn(1, 4))
    two = Program(Local(), learner_settings(batch=8, shards=4), SHAPES, 3)
    check_program(two, blocks, torch.randn(2, 4))
