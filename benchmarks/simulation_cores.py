"""Fits four numbers about cores so that the simulator gives the steps/s of four measured runs.

The network is none of the predicted ones. With local losses one block fits `speed`: what an
operation takes in an actor, whose process also talks to Ray, against where its cost was measured;
one block a core fits `contention`, and two blocks a core fit `crowding`. Two blocks that do
backprop in 1F1B order, where each waits for the other, fit `within.latency`: a message passes
through six threads, and each waits for a core that others use. Each rate falls as its number grows
(rises, for `speed`), so bisection finds it; one outside the bounds stays at the bound. Each number
is the median over the repeats.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.simulation_runs import rate, run
from benchmarks.workloads import Workload, configuration, prepared
from learning.build import Program
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs, measure_costs
from orchestrator.simulation import simulate

WARMUP = 20
BOUNDS = {
    "speed": (0.5, 1.5),
    "contention": (0.0, 0.6),
    "crowding": (0.0, 0.6),
    "latency": (0.0, 0.03),  # seconds
}
SHARDS = 4
"""Of a step in 1F1B order."""
HALVINGS = 12


def fit_cores(
    machine: ClusterDescription, repeats: int, steps: int, *, tiny: bool
) -> ClusterDescription:
    """The machine with the speed, contention, crowding and latency of this one.

    Ray is connected.

    Args:
        machine: all else about it.
        steps: of each run, after `WARMUP`.
    """
    cores = machine.devices
    runs = [("speed", "local", 1), ("crowding", "local", 2 * cores), ("latency", "backprop", 2)]
    if cores > 1:
        runs.insert(1, ("contention", "local", cores))
    for name, rule, blocks in runs:
        fits = [fit(machine, name, *_measured(rule, blocks, steps, tiny)) for _ in range(repeats)]
        machine = _with(machine, name, statistics.median(fits))
    return machine


def _with(machine: ClusterDescription, name: str, value: float) -> ClusterDescription:
    if name != "latency":
        return machine.model_copy(update={name: value})
    within = machine.within.model_copy(update={"latency": value})
    return machine.model_copy(update={"within": within})


def _measured(rule: str, blocks: int, steps: int, tiny: bool) -> tuple[Callable[..., float], float]:
    """How to predict a run on a machine, and its rate here, in steps/s."""
    workload = Workload("mlp", 768, 96, layers=2, blocks=blocks)
    workload = workload.tiny() if tiny else workload
    shards = SHARDS if rule == "backprop" else 1
    config = configuration(workload, WARMUP + steps, rule=rule, shards=shards)
    ready = prepared(workload, config)
    units = ready.plan.units_of_blocks(ready.units)
    costs = measure_costs(ready.program, units, ready.batches, threads=1, repeats=15)
    spans, _ = run(ready, config, WARMUP)
    return partial(_predicted, ready.program, costs), rate(spans, blocks, WARMUP)


def _predicted(program: Program, costs: Costs, machine: ClusterDescription) -> float:
    # All cores of the machine are shared: the highest device says that the run has them all.
    devices = [machine.devices - 1] * program.blocks
    return simulate(program, costs, machine, devices).steps_per_second


def fit(
    machine: ClusterDescription,
    name: str,
    predict: Callable[[ClusterDescription], float],
    measured: float,
) -> float:
    """The value of one number at which `predict` gives the measured steps/s."""
    low, high = BOUNDS[name]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        faster = predict(_with(machine, name, middle)) > measured
        if faster == (name == "speed"):
            high = middle
        else:
            low = middle
    return (low + high) / 2
