"""Every credit on a small language model: tokens in, one label a token, attention in each block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from learning.build import Program
from learning.checks import check_program
from learning.networks import GPTSettings, ViTSettings, build_network
from learning.objectives.heads import HeadSettings
from learning.rules import (
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
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings, PrecisionSettings
from learning.units import split, units_of
from tests.learning.helpers import (
    DOUBLE,
    assert_close,
    assert_same_bits,
    assert_same_state,
    gradients_of,
    learner_settings,
    snapshot,
    train,
)

TOKENS, CLASSES, WIDTH = 5, 7, 8
BFLOAT16 = PrecisionSettings(compute="bfloat16")
RULES: dict[str, Rule] = {
    "overlapping": Overlapping(),
    "backlink": BackLink(units=1),
    "guided": PeriodicGuidance(period=2),
    "reconcile": Reconciliation(weight=0.5, warmup=0.1),
    "reconcile squared": Reconciliation(weight=0.5, warmup=0, distance="squared"),
    "reconcile attending head": Reconciliation(
        weight=0.5, warmup=0, head=HeadSettings(kind="transformer", heads=2)
    ),
    "reconcile bp-free": Reconciliation(weight=0.5, warmup=0, bp_free=True),
    "delayed weights": DelayedGradients(),
    "delayed inputs": DelayedGradients(stash="inputs", lag=2),
    "replay": ReplayedLocal(),
    "alignment": Alignment(),
    "sign-symmetric": Alignment(map="sign-symmetric"),
    "dfa": DirectAlignment(),
    "drtp": TargetAlignment(),
    "interlocking": Interlocking(),
}


def engine_of(rule: Rule, kind: str = "gpt", seed: int = 0, **settings) -> SequentialEngine:
    if kind == "gpt":
        network = GPTSettings(width=WIDTH, depth=3, heads=2, mlp_ratio=2.0, dropout=0.1)
        model = build_network(network, (TOKENS,), CLASSES, seed, tokens=True)
        shapes, target = ((TOKENS, WIDTH), (TOKENS, WIDTH), (TOKENS, CLASSES)), (TOKENS,)
        source = (TOKENS,)
    else:
        network = ViTSettings(width=WIDTH, depth=3, heads=2, patch=2)
        model = build_network(network, (1, 4, 4), CLASSES, seed)
        names, target, source = [u.name for u in units_of(model)], (), (1, 4, 4)
        with torch.no_grad():
            inner = model[: names.index("block2")](torch.zeros(1, *source))
        shapes = (tuple(inner.shape[1:]), tuple(inner.shape[1:]), (CLASSES,))
    blocks = split(units_of(copy.deepcopy(model)), ["block2", "block3"])
    options = {"batch": 4, "optimizer": AdamWSettings(lr=0.01), **settings}
    program = Program(
        rule,
        learner_settings(**options),
        shapes,
        CLASSES,
        input_shape=source,
        target_shape=target,
    )
    return SequentialEngine(program, blocks)


def shards_of(kind: str, shards: int = 1):
    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        if kind == "gpt":
            tokens = torch.randint(CLASSES, (4, TOKENS + 1), generator=generator)
            x, y = tokens[:, :-1], tokens[:, 1:]
        else:
            x = torch.randn(4, 1, 4, 4, generator=generator)
            y = torch.randint(CLASSES, (4,), generator=generator)
        return x.chunk(shards)[shard], y.chunk(shards)[shard]

    return shard_of


@pytest.mark.parametrize("precision", [DOUBLE, BFLOAT16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt", "vit"])
@pytest.mark.parametrize("rule", RULES)
def test_transformers_train_and_resume_bit_for_bit(rule, kind, precision):
    shard_of = shards_of(kind, 2)
    whole, resumed = (
        engine_of(RULES[rule], kind, seed, precision=precision, shards=2) for seed in (0, 1)
    )
    blocks = [list(block.units) for block in whole.blocks]
    check_program(whole.program, blocks, shard_of(0, 0)[0])
    train(whole, range(4), shard_of)
    resumed.load_state_dict(snapshot(whole), 4)
    metrics = [train(engine, range(4, 7), shard_of) for engine in (whole, resumed)]
    assert metrics[0] == metrics[1]
    assert_same_state(snapshot(resumed), snapshot(whole))
    for state in snapshot(whole).values():
        assert all(torch.isfinite(t).all() for t in state.values())


@pytest.mark.parametrize("kind", ["gpt", "vit"])
@pytest.mark.parametrize("rule", [name for name in RULES if name != "replay"])
def test_transformers_do_not_depend_on_how_a_batch_is_cut(rule, kind):
    got = []
    for shards in (1, 2):
        engine = engine_of(RULES[rule], kind, shards=shards)
        for block in engine.blocks:
            for module in block.chain.modules():
                if hasattr(module, "p"):
                    module.p = 0.0  # masks of dropout are drawn for each shard
                if isinstance(getattr(module, "dropout", None), float):
                    module.dropout = 0.0
        step = engine.blocks[0].delay
        train(engine, range(step), shards_of(kind, shards))
        got.append(gradients_of(engine, step, shards_of(kind, shards)))
    for k in (1, 2, 3):
        assert got[0][k]
        assert sorted(got[0][k]) == sorted(got[1][k])
        for name, gradient in got[0][k].items():
            # AdamW's first steps are signs: rounding may turn those of gradients near zero.
            torch.testing.assert_close(gradient, got[1][k][name], rtol=1e-5, atol=1e-9)


def test_a_weight_of_0_is_local_learning_on_plain_attention():
    """Up to rounding, for reconciliation runs attention by its formula and not by a kernel."""
    got = [
        gradients_of(engine_of(rule), 0, shards_of("gpt"))
        for rule in (Reconciliation(weight=0), Local())
    ]
    for k in (1, 2, 3):
        assert_close(got[0][k], got[1][k])


def test_identity_maps_and_tokens():
    """Integer inputs take no gradient, whatever block 1's credit."""
    got = [
        gradients_of(engine_of(rule), 0, shards_of("gpt"))
        for rule in (Alignment(map="identity"), Backprop(), DelayedGradients(lag=0))
    ]
    for k in (1, 2, 3):
        assert_same_bits(got[0][k], got[1][k])
        assert_same_bits(got[0][k], got[2][k])
