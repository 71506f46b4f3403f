"""Workloads and peers: equal blocks, and every peer computes what it claims to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.crew import Crew, Seat, free_port
from benchmarks.throughput import CASES
from benchmarks.workloads import LEARNING_RATE, MOMENTUM, Workload, configuration, prepared
from learning.sequential import SequentialEngine
from learning.units import Chain
from tests.benchmarks.helpers import TINY

STEPS = 3
KINDS = {
    "mlp": TINY,
    "spread": Workload("mlp", 8, 8, layers=2, spread=3),
    "conv": Workload("conv", 4, 8, layers=2),
    "gpt": Workload("gpt", 8, 4, layers=1),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_blocks_are_equal_and_messages_as_large_as_said(kind: str) -> None:
    workload = KINDS[kind]
    ready = prepared(workload, configuration(workload, 1))
    blocks = ready.plan.units_of_blocks(ready.units)
    sizes = [
        sum(
            p.numel() for u in units for p in u.module.parameters() if not u.name.startswith("head")
        )
        for units in blocks
    ]
    assert len(set(sizes)) == 1 and len(sizes) == workload.blocks
    sent = np.prod(ready.program.output_shapes[0]) * workload.batch * torch.float32.itemsize
    assert sent == workload.message_bytes


def test_the_networks_weights_are_the_same_in_every_process() -> None:
    state, again = TINY.network().state_dict(), TINY.network().state_dict()
    assert all(torch.equal(t, again[n]) for n, t in state.items())


def backprop_by_hand(workload: Workload, steps: int) -> dict[str, np.ndarray]:
    """The weights after momentum SGD on the mean loss, written out."""
    ready = prepared(workload, configuration(workload, steps, rule="backprop"))
    model = Chain(ready.units)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        x, y = ready.batches.batch(step % peers.BATCHES)
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, velocities, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.sub_(LEARNING_RATE * v)
    return {n: t.detach().numpy() for n, t in model.original_state().items()}


def assert_same_weights(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, weights in left.items():
        np.testing.assert_allclose(weights, right[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("schedule", "microbatches"), [("GPipe", 1), ("GPipe", 4), ("1F1B", 4)])
@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_pipelining_trains_as_backprop_does(
    crew: Crew, kind: str, schedule: str, microbatches: int
) -> None:
    workload = KINDS[kind]
    done = crew.run(peers.pipelined, workload, schedule, microbatches, free_port(), 1, STEPS - 1)
    weights = {n: t for _, state in done for n, t in state.items()}
    assert_same_weights(weights, backprop_by_hand(workload, STEPS))
    assert all(state for _, state in done) and all(seconds > 0 for seconds, _ in done)


def test_pipelining_has_no_1f1b_with_fewer_microbatches_than_blocks() -> None:
    for case in CASES.values():
        for schedule, microbatches in case.schedules:
            assert schedule != "1F1B" or microbatches >= case.workload.blocks
            assert case.workload.batch % microbatches == 0


def test_plain_backprop_is_backprop() -> None:
    seat = Seat(0, 1, None)
    seconds, weights = peers.plain_backprop(seat, TINY, 1, 1, STEPS - 1)
    assert seconds > 0
    assert_same_weights(weights, backprop_by_hand(TINY, STEPS))


def test_our_backprop_is_that_of_the_peers() -> None:
    """The engine that the ratios are about trains the same network from the same batches."""
    ready = prepared(TINY, configuration(TINY, STEPS, rule="backprop", order="gpipe", shards=2))
    engine = SequentialEngine(ready.program, ready.plan.units_of_blocks(ready.units))
    for step in range(STEPS):
        engine.train_step(step, ready.batches.shard)
    ours_after = {n: t.detach().numpy() for n, t in Chain(ready.units).original_state().items()}
    assert_same_weights(ours_after, backprop_by_hand(TINY, STEPS))


def test_the_ceiling_needs_no_neighbour() -> None:
    """Each block alone does all its steps; the barrier is met once, after the warm-up."""

    class Barrier:
        met = 0

        def wait(self) -> None:
            Barrier.met += 1

    for rank in range(2):
        assert peers.block_alone(Seat(rank, 2, Barrier()), TINY, 1, STEPS) > 0
    assert Barrier.met == 2


def test_a_crew_says_what_failed_in_it() -> None:
    with Crew(1) as one:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            one.run(fails)
        with pytest.raises(RuntimeError, match="ended with code 7"):
            one.run(dies)


def fails(seat: Seat) -> float:
    return 1 / seat.rank


def dies(seat: Seat) -> None:
    raise SystemExit(7)
