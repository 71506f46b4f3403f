"""Predicts a run by discrete events: steps/s, idle devices and memory on a described cluster.

Simulated actors execute the operation lists that the real ones get (`orchestrator/program.py`),
over measured costs (`orchestrator/costs.py`). docs/simulator.md has the model and what it leaves
out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from learning.build import Program
from learning.errors import UserError
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE
from orchestrator.limits import operations_a_step
from orchestrator.settings import SourcePlace
from orchestrator.simulation_actors import Work
from orchestrator.simulation_machine import Machine, Prediction

STEPS = 32
OPERATIONS = 100_000
"""About as many are simulated at most; a few seconds."""
FEWEST_STEPS = 6


def in_rows(blocks: int, devices: int) -> list[int]:
    """The device of each block when neighbours share one: 0 0 1 1 2 2."""
    return [k * devices // blocks for k in range(blocks)]


def in_turns(blocks: int, devices: int) -> list[int]:
    """The device of each block when devices take turns: 0 1 2 0 1 2, for interleaved schedules."""
    return [k % devices for k in range(blocks)]


def enough_steps(program: Program) -> int:
    """Steps until a run has settled: past the feedback delay, within a budget of operations."""
    shards, blocks = program.settings.shards, program.blocks
    affordable = OPERATIONS // (blocks * (3 * shards + 1))
    return max(FEWEST_STEPS, min(max(STEPS, 3 * program.feedback_delay), affordable))


def simulate(
    program: Program,
    costs: Costs,
    cluster: ClusterDescription,
    devices: Sequence[int],
    *,
    source: SourcePlace = "block1",
    window: int = 3,
    steps: int | None = None,
    record: bool = False,
) -> Prediction:
    """Simulate a run from its first step.

    Feedback module k is on block k's device. Batches are made on the first block's node: beside its
    accelerators, or on its cores.

    Args:
        costs: of every actor of `program` and of the source, wherever that is, on a device of
            speed 1.
        devices: of blocks 1..K, counted from 0 over all nodes. The run has these devices and those
            before the highest of them: of CPU nodes that many cores, shared by all on a node.
        source: who makes the batches: block 1, each right before it takes it, or an actor of its
            own, ahead of it.
        window: steps that a block (or the source) may run ahead of the next one.
        steps: to simulate; by default `enough_steps`.
        record: keep every operation.

    Raises:
        UserError: for a device that the cluster does not have, or costs that lack an operation.
    """
    began = time.perf_counter()
    steps = enough_steps(program) if steps is None else steps
    if steps < 2:
        raise UserError(f"steps = {steps} is less than 2: a rate takes at least 2 steps")
    if len(devices) != program.blocks:
        raise UserError(
            f"{len(devices)} devices are given for {program.blocks} blocks: give each block one"
        )
    if max(devices) >= cluster.total or min(devices) < 0:
        raise UserError(
            f"blocks are on {max(devices) + 1} devices and the cluster has {cluster.total}: ask "
            "for fewer devices or describe more nodes"
        )
    machine = Machine(program, costs, cluster, devices, source, window * program.settings.shards)
    work: list[Work] | None = [] if record else None
    for actor in machine.build(steps, work):
        actor.go_on()
    machine.clock.run()
    stuck = [a.name for a in machine.actors.values() if not a.finished]
    assert not stuck, f"deadlock: {stuck}"
    return machine.prediction(steps, time.perf_counter() - began, work or [])


def alone(
    program: Program, costs: Costs, cluster: ClusterDescription, source: SourcePlace
) -> float:
    """Seconds of a step on one device of `cluster` that does everything itself.

    Nothing is sent, and no other device is busy. A core does by itself what the costs' threads do
    on as many cores, and makes the batches too. Beside an accelerator a processor makes them:
    meanwhile, where the source is an actor, and before each forward, where block 1 does it.
    """
    on_cores = cluster.kind == "cpu"
    seconds = 0.0
    for name, kinds in operations_a_step(program).items():
        batches = name == SOURCE
        if batches and not on_cores and source == "actor":
            continue
        speed = 1.0 if batches and not on_cores else cluster.speed
        threads = costs.threads if on_cores and not batches else 1
        for kind, count in kinds.items():
            each = costs.operations[name, kind].seconds / speed + cluster.overhead
            seconds += count * each * threads
    return seconds
