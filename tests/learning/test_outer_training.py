"""Training with lanes that agree every so many steps: a number by hand, lanes alone, states."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.build import Program
from learning.lanes import LaneEngine
from learning.rules import Backprop, DelayedGradients, Local, MomentumAuxiliary, Rule
from learning.sequential import SequentialEngine
from learning.settings import (
    AdamWSettings,
    OuterSettings,
    SGDSettings,
    UpdateSettings,
)
from learning.units import Unit
from tests.learning.helpers import DOUBLE, State, assert_close, assert_same_bits, mlp, snapshot
from tests.learning.test_lanes import BATCH, CONV, MAIN, RULES, data, program_of

PLAIN = SGDSettings(lr=0.1, momentum=0.0)
ADAMW = AdamWSettings(lr=0.01)


def apart(
    rule: Rule, outer: OuterSettings | None, shards: int = 4, **some: Any
) -> tuple[Program, list[list[Unit]]]:
    """A program whose lanes agree by outer steps, and its blocks; without dropout unless told."""
    program, blocks = program_of(rule, some.pop("model", mlp(0, norm=True)), shards=shards, **some)
    return replace(program, settings=replace(program.settings, outer=outer)), blocks


class Scores(nn.Module):
    """One learnable number: features (b, 3) to scores (b, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_one_number_learns_as_written_down(lanes: int) -> None:
    """Lanes of 1, 2 or 3 of 3 shards; inner SGD with momentum, torch's SGD as the outer one."""
    outer = OuterSettings(every=3, lr=0.6, momentum=0.8)
    inner = SGDSettings(lr=0.5, momentum=0.5)
    program, blocks = apart(
        Backprop(),
        outer,
        shards=3,
        model=nn.Sequential(Scores()),
        at=(),
        shape=(3,),
        batch=12,
        precision=DOUBLE,
        optimizer=inner,
    )
    engine = LaneEngine(program, blocks, lanes)

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(10 * step + shard)
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        return x, torch.randint(3, (4,), generator=generator)

    theta = nn.Parameter(torch.tensor(0.3).double())
    outer_sgd = torch.optim.SGD([theta], lr=0.6, momentum=0.8, nesterov=True)
    own = {1: [[0, 1, 2]], 2: [[0], [1, 2]], 3: [[0], [1], [2]]}[lanes]
    w = [theta.item()] * lanes
    v = [0.0] * lanes
    for step in range(7):
        metrics = engine.train_step(step, shard_of)
        for lane, shards in enumerate(own):
            x, y = (torch.cat(t) for t in zip(*(shard_of(step, s) for s in shards), strict=True))
            at = torch.tensor(w[lane], dtype=torch.float64, requires_grad=True)
            loss = F.cross_entropy(at * x, y)
            loss.backward()
            assert at.grad is not None
            if lane == 0:
                assert metrics["block1"]["loss"] == pytest.approx(loss.item(), rel=1e-12)
            v[lane] = 0.5 * v[lane] + at.grad.item()
            w[lane] -= 0.5 * v[lane]
        if step in (2, 5):
            theta.grad = theta.detach() - sum(w) / lanes
            outer_sgd.step()
            w = [theta.item()] * lanes
        got = [lane.learners["block1"].updater.parameters[0].item() for lane in engine.lanes]
        assert got == pytest.approx(w, rel=1e-12)


def test_agreeing_at_every_step_on_the_mean_is_data_parallel() -> None:
    """H = 1, no momentum, inner and outer, and a rate of one: the mean of steps is the step."""
    outer = OuterSettings(every=1, lr=1.0, momentum=0.0)
    some: dict[str, Any] = {"optimizer": PLAIN, "precision": DOUBLE, "model": mlp(0)}
    engines = [LaneEngine(*apart(RULES["bll"], o, **some), 2) for o in (outer, None)]
    for step in range(5):
        for engine in engines:
            engine.train_step(step, data(4))
    theirs, mine = (
        {
            f"{name}.{n}": t
            for name, state in engine.state_dict().items()
            for n, t in state.items()
            if t.is_floating_point() and not n.startswith("outer.")
        }
        for engine in engines
    )
    assert_close(theirs, mine)
    assert any("readout" in name for name in mine) and any("feedback" in name for name in mine)


@pytest.mark.parametrize("optimizer", [PLAIN, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("rule", MAIN)
def test_between_outer_steps_a_lane_is_a_run_of_its_own(rule: str, optimizer: Any) -> None:
    """Bit for bit, whichever shards of the step are its own: here 0 and 1, and 2, 3 and 4."""
    program, blocks = apart(RULES[rule], OuterSettings(every=4), shards=5, optimizer=optimizer)
    engine = LaneEngine(program, copy.deepcopy(blocks), 2)
    shard_of = data(5)
    metrics = [engine.train_step(step, shard_of) for step in range(3)]
    for lane, (first, shards) in zip(engine.lanes, ((0, 2), (2, 3)), strict=True):
        own = replace(program.settings, outer=None, batch=BATCH * shards // 5, shards=shards)
        alone = SequentialEngine(replace(program, settings=own), copy.deepcopy(blocks))
        told = [
            alone.train_step(t, lambda step, shard, first=first: shard_of(step, first + shard))
            for t in range(3)
        ]
        assert first > 0 or told == metrics
        for name, state in snapshot(alone).items():
            mine = {n: t for n, t in snapshot(lane)[name].items() if not n.startswith("outer.")}
            assert_same_bits(mine, state)


@pytest.mark.parametrize("rule", ["local", "bll", "man", "reconcile", "alignment"])
def test_lanes_are_one_after_an_outer_step(rule: str) -> None:
    """All but inner optimizers and what is under way; dropout and shards differ."""
    program, blocks = apart(RULES[rule], OuterSettings(every=3), optimizer=ADAMW, model=None)
    engine, states = LaneEngine(program, blocks, 3), list[State]()
    for step in range(6):
        engine.train_step(step, data(4))
        states = [snapshot(lane) for lane in engine.lanes]
        for name in states[0]:
            shared = [
                {n: t for n, t in s[name].items() if not n.startswith(("optimizer.", "sent."))}
                for s in states
            ]
            for other in shared[1:]:
                same = all(torch.equal(t, other[n]) for n, t in shared[0].items())
                assert same == (step in (2, 5)), (step, name)
    momenta = [s["block1"]["optimizer.0.0.weight.exp_avg"] for s in states]
    assert not torch.equal(momenta[0], momenta[1])


@pytest.mark.parametrize(
    ("rule", "some"),
    [
        (Local(head=CONV), {"update": UpdateSettings(fused=True), "shards": 1}),
        (Local(head=CONV), {"update": UpdateSettings(proximal=0.5)}),
        (DelayedGradients(), {}),
        (MomentumAuxiliary(momentum=0.5), {}),
        (RULES["bll, direct, bootstrap"], {}),
    ],
    ids=["fused", "proximal", "delayed", "man", "bll"],
)
def test_a_state_at_an_outer_step_continues_bit_for_bit(rule: Rule, some: dict[str, Any]) -> None:
    """With one lane; the inner steps are those of a run without, until the first outer one."""
    whole = SequentialEngine(*apart(rule, OuterSettings(every=2), **some))
    first = SequentialEngine(*apart(rule, OuterSettings(every=2), **some))
    plain = SequentialEngine(*apart(rule, None, **some))
    shard_of = data(some.get("shards", 4))
    for step in range(6):
        whole.train_step(step, shard_of)
        if step < 4:
            first.train_step(step, shard_of)
        if step < 2:
            plain.train_step(step, shard_of)
        same = torch.equal(*(e.blocks[0].block_parameters[0] for e in (whole, plain)))
        assert same == (step == 0 or (step == 1 and isinstance(rule, DelayedGradients)))
    resumed = SequentialEngine(*apart(rule, OuterSettings(every=2), **some))
    resumed.load_state_dict(snapshot(first), 4)
    for step in (4, 5):
        resumed.train_step(step, shard_of)
    for name, state in snapshot(whole).items():
        assert {n.split(".")[0] for n in state} >= {"optimizer", "outer"}
        assert_same_bits(snapshot(resumed)[name], state)


def test_lanes_come_and_go_where_all_agree() -> None:
    """A new one begins as the first, with its inner optimizer."""
    program, blocks = apart(RULES["bll"], OuterSettings(every=2), optimizer=ADAMW)
    engine = LaneEngine(program, blocks, 2)
    for step in range(2):
        engine.train_step(step, data(4))
    with pytest.raises(AssertionError, match="lanes differ before step 1"):
        engine.resize(3, 1)
    engine.resize(4, 2)
    states = [snapshot(lane) for lane in engine.lanes]
    for name in states[0]:
        assert_same_bits(states[3][name], states[0][name])
    assert states[1]["block1"]["optimizer.0.0.weight.exp_avg"] is not None
    engine.train_step(2, data(4))
    weights = [lane.blocks[0].block_parameters[0] for lane in engine.lanes]
    assert not any(torch.equal(weights[0], w) for w in weights[1:])
    engine.train_step(3, data(4))
    assert all(torch.equal(weights[0], w) for w in weights[1:])
