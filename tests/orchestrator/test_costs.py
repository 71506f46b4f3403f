"""Measured costs: what must be there, what is known by hand, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from actors.operations import Kind
from learning.data import Batches
from learning.errors import UserError
from learning.networks import MLPSettings
from learning.rules import (
    Backprop,
    DelayedGradients,
    Interlocking,
    Local,
    PeriodicGuidance,
    Reconciliation,
)
from learning.settings import UpdateSettings
from learning.units import Unit
from orchestrator.costs import Costs, measure_costs
from orchestrator.dependencies import needs, programs
from orchestrator.gathered import Sent
from tests.clock import Clock
from tests.orchestrator.engines import BATCH, Case
from tests.orchestrator.test_engine_exactness import CASES

PLAIN = MLPSettings(widths=(12, 8, 10), normalization="none")
X1, X2 = BATCH * 72 * 4, BATCH * 12 * 4  # float32 inputs of blocks 1 and 2
LABELS = BATCH * 8  # int64


def measured(case: Case, repeats: int = 1) -> Costs:
    """The costs of a case."""
    program, _, blocks = case.build()
    return measure_costs(program, blocks, batches(case), threads=1, repeats=repeats)


def batches(case: Case) -> Batches:
    return Batches(case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment)


@pytest.mark.parametrize("name", CASES)
def test_every_operation_and_message_of_every_rule(name: str) -> None:
    """The dependencies that plans and simulations go by are what the learners really send."""
    program, _, _ = CASES[name].build()
    costs = measured(CASES[name])
    expected = set()
    for actor, operations in programs(program, range(30)).items():
        for op in operations:
            assert costs.operations[actor, op.kind].seconds > 0
            for need in needs(program, actor, op):
                expected.add((need.sender, need.operation.kind, actor, need.what))
    sent = {
        (sender, kind, message.to, message.what)
        for (sender, kind), cost in costs.operations.items()
        for message in cost.sends
    }
    assert sent == expected
    sizes = [
        m.size for cost in costs.operations.values() for m in cost.sends if m.what != "weights"
    ]
    assert min(sizes) > 0  # a unit may have no weights
    assert {actor for actor, _ in costs.operations} == set(costs.state_bytes)
    assert costs.threads == 1


def test_messages_by_hand() -> None:
    costs = measured(Case(Interlocking(), PLAIN))
    assert costs.operations["source", Kind.BATCH].sends == (Sent("block1", "x", X1 + LABELS),)
    assert costs.operations["block1", Kind.FORWARD].sends == (Sent("block2", "x", X2 + LABELS),)
    assert costs.operations["block2", Kind.ASSESS].sends == (Sent("block1", "g", X2),)
    assert costs.operations["block1", Kind.UPDATE].sends == ()


def test_memory_by_hand() -> None:
    costs = measured(Case(Backprop(), PLAIN, at=("layer2",)))
    # The linear layer keeps its input and the ReLU its output.
    assert costs.activation_bytes["block1"] == X1 + X2
    weights = (72 * 12 + 12) * 4
    counters = 2 * 4  # AdamW counts its steps for each parameter
    assert costs.state_bytes["block1"] == weights * 4 + counters  # weights, gradients, two moments
    assert costs.activation_bytes["source"] == costs.state_bytes["source"] == 0


def test_auxiliary_networks_count() -> None:
    costs = measured(Case(Local(), PLAIN, at=("layer2",)))
    head = (12 * 4 + 4) * 4
    assert costs.state_bytes["block1"] == ((72 * 12 + 12) * 4 + head) * 4 + 4 * 4
    assert costs.activation_bytes["block1"] > X1 + X2
    fused = measured(Case(Local(), PLAIN, at=("layer2",), update=UpdateSettings(fused=True)))
    gradients = (72 * 12 + 12) * 4 + head
    assert fused.state_bytes["block1"] == costs.state_bytes["block1"] - gradients + 72 * 12 * 4


def test_one_shard_keeps_its_share() -> None:
    for rule in (Backprop(order="gpipe"), Backprop(order="1f1b"), DelayedGradients()):
        one, four = (measured(Case(rule, PLAIN, at=("layer2",), shards=n)) for n in (1, 4))
        # What is kept besides, such as copies of the weights, is the same for both.
        more = one.activation_bytes["block1"] - four.activation_bytes["block1"]
        assert more == (X1 + X2) * 3 // 4


def test_second_derivatives_are_measured() -> None:
    """The penalty rises over 10 % of a run; what is measured is its full height."""
    local, reconcile = (measured(Case(rule, PLAIN)) for rule in (Local(), Reconciliation()))
    assert reconcile.activation_bytes["block2"] > 1.5 * local.activation_bytes["block2"]


def test_a_rare_phase_is_measured() -> None:
    costs = measured(Case(PeriodicGuidance(period=900, guided=2), PLAIN))
    assert costs.operations["block1", Kind.GRADIENT].seconds > 0
    assert costs.operations["block1", Kind.ASSESS].seconds > 0


def test_time_is_that_of_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("orchestrator.profile.time", clock)

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clock.sleep(0.02)
            return x * 1.0

    case = Case(Local(), PLAIN)
    program, _, blocks = case.build()
    blocks[1].append(Unit("slow", Slow()))
    costs = measure_costs(program, blocks, batches(case), threads=1, repeats=3)
    assert costs.operations["block2", Kind.FORWARD].seconds == pytest.approx(0.02)
    waits = costs.operations["block3", Kind.FORWARD].seconds  # what it waited for is not its own
    assert waits == 0.0


def test_nothing_of_the_user_changes() -> None:
    case = replace(CASES["bll, delay auto, batch norm"], shards=1)
    program, _, blocks = case.build()
    modules = [unit.module.eval() for block in blocks for unit in block]
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in modules]
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    measure_costs(program, blocks, batches(case), threads=threads + 1, repeats=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    for module, state in zip(modules, before, strict=True):
        assert not module.training
        assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())


def test_no_repeats_is_refused() -> None:
    with pytest.raises(UserError, match="repeats = 0 is less than 1: use at least 1 timed step"):
        measured(Case(), repeats=0)
