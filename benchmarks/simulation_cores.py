"""Fits five numbers about cores so that the simulator gives the steps/s of five measured runs.

No network here is one of the predicted ones. With local losses one block fits `speed`: what an
operation takes in an actor, whose process also talks to Ray, against where its cost was measured;
one block a core fits `contention`, and two blocks a core fit `crowding`. BLL on a small network has
more actors than cores, and much to send: it fits `message.daemons`, the CPU that messages take
beside their senders and receivers. Two blocks that do backprop in 1F1B order, where each waits for
the other, fit `within.latency`: a message passes through six threads, and each waits for a core
that others use.

Each rate falls as its number grows (rises, for `speed`), so bisection finds it; one outside the
bounds stays at the bound. The numbers are fitted in turn, several times, for each changes what the
others have to explain. Each is the median over the repeats.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from benchmarks.simulation_runs import rate, run
from benchmarks.workloads import Workload, configuration, prepared
from learning.build import Program
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs, measure_costs
from orchestrator.simulation import simulate

WARMUP = 20
BOUNDS = {  # by key of a cluster's description
    "speed": (0.5, 1.5),
    "contention": (0.0, 0.6),
    "crowding": (0.0, 0.6),
    "message.daemons": (0.0, 0.005),  # seconds
    "within.latency": (0.0, 0.03),  # seconds
}
SHARDS = 4
"""Of a step in 1F1B order."""
HALVINGS = 12
ROUNDS = 4
"""Of fits in turn."""


class Measured(NamedTuple):
    """How to predict a run on a machine, and its rate here, in steps/s."""

    predict: Callable[[ClusterDescription], float]
    rate: float


def fit_cores(
    machine: ClusterDescription, repeats: int, steps: int, *, tiny: bool
) -> ClusterDescription:
    """The machine with the speed, contention, crowding, daemons and latency of this one.

    Ray is connected.

    Args:
        machine: all else about it.
        steps: of each run, after `WARMUP`.
    """
    cores = machine.devices
    wide, small = Workload("mlp", 768, 96, layers=2), Workload("mlp", 384, 48, layers=2)
    runs = {
        "speed": ("local", replace(wide, blocks=1)),
        "contention": ("local", replace(wide, blocks=cores)),
        "crowding": ("local", replace(wide, blocks=2 * cores)),
        "message.daemons": ("bll", replace(small, blocks=2)),
        "within.latency": ("backprop", replace(wide, layers=4, blocks=2)),
    }
    if cores == 1:  # which is never busy beside another
        del runs["contention"]
    measured: dict[str, list[Measured]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (rule, workload) in runs.items():
            measured[name].append(_measure(rule, workload.tiny() if tiny else workload, steps))
    return fit_in_turn(machine, measured)


def fit_in_turn(
    machine: ClusterDescription, measured: Mapping[str, Sequence[Measured]]
) -> ClusterDescription:
    """The machine with numbers, by name, that give the rates measured for each."""
    for _ in range(ROUNDS):
        for name, runs in measured.items():
            machine = _with(machine, name, statistics.median(fit(machine, name, *r) for r in runs))
    return machine


def _with(machine: ClusterDescription, key: str, value: float) -> ClusterDescription:
    part, _, name = key.rpartition(".")
    if not part:
        return machine.model_copy(update={name: value})
    changed = getattr(machine, part).model_copy(update={name: value})
    return machine.model_copy(update={part: changed})


def _measure(rule: str, workload: Workload, steps: int) -> Measured:
    shards = SHARDS if rule == "backprop" else 1
    config = configuration(workload, WARMUP + steps, rule=rule, shards=shards)
    ready = prepared(workload, config)
    units = ready.plan.units_of_blocks(ready.units)
    costs = measure_costs(ready.program, units, ready.batches, threads=1, repeats=15)
    predict = partial(_predicted, ready.program, costs)
    return Measured(predict, rate(run(ready), workload.blocks, WARMUP))


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
