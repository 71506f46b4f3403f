"""Every rule with a credit of its own learns a small task, with all its blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
from learning.settings import AdamWSettings, OneCycleSchedule
from tests.learning.helpers import batch_of, learner_settings, make_engine, mlp, model_state, train

STEPS = 120
DIRECTIONS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RULES: dict[str, Rule] = {
    "backprop": Backprop(),
    "local": Local(),
    "interlocking": Interlocking(),
    "overlapping": Overlapping(),
    "backlink": BackLink(units=2),
    "guided": PeriodicGuidance(),
    "reconcile": Reconciliation(),
    "reconcile, squared": Reconciliation(distance="squared"),
    "reconcile, bp-free": Reconciliation(bp_free=True),
    "delayed, weights": DelayedGradients(),
    "delayed, inputs": DelayedGradients(stash="inputs"),
    "delayed, lag 3": DelayedGradients(lag=3, compensation=0.5),
    "replay": ReplayedLocal(),
    "alignment": Alignment(),
    "alignment, sign-symmetric": Alignment(map="sign-symmetric"),
    "dfa": DirectAlignment(),
    "drtp": TargetAlignment(),
}


def labelled(step: int, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Points and which of three directions they lie along most."""
    x, _ = batch_of(step, batch=batch)
    return x, (x @ DIRECTIONS).argmax(1)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns(rule):
    """Chance is near 0.4. Every block moves."""
    settings = learner_settings(
        batch=32, steps=STEPS, optimizer=AdamWSettings(lr=0.03), schedule=OneCycleSchedule()
    )
    model = mlp(0, norm=True)
    engine = make_engine(RULES[rule], model, ["1.0", "2.0"], x=labelled(0)[0], settings=settings)
    before = model_state(engine)
    train(engine, range(STEPS), lambda step, shard: labelled(step))
    test = [labelled(step, 200) for step in range(1000, 1003)]
    accuracy = engine.evaluate(STEPS - 1, "test", iter(test))["block3"]["accuracy"]
    assert accuracy > 0.8
    after = model_state(engine)
    for name in ("0.0.weight", "1.0.weight", "2.0.weight"):
        assert (after[name] - before[name]).abs().max() > 0.05, name
