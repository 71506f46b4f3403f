"""Hand-made costs and simulated clusters for tests of the simulator."""

from __future__ import annotations

from actors.operations import Kind
from learning.build import Program
from learning.rules import Rule
from orchestrator.clusters import ClusterDescription, PathSettings
from orchestrator.costs import Costs, OperationCost, Sent
from orchestrator.dependencies import SOURCE, programs
from orchestrator.settings import SourcePlace
from orchestrator.simulation import simulate
from orchestrator.simulation_machine import Prediction
from orchestrator.simulation_routes import Routes
from tests.orchestrator.simulator import program

SOURCES: tuple[SourcePlace, ...] = ("block1", "actor")
FREE = ClusterDescription(kind="accelerator", nodes=1024, devices=1)


def one_node(devices: int, **settings) -> ClusterDescription:
    """A node with free messages, unless told otherwise."""
    return ClusterDescription(nodes=1, devices=devices, **settings)


def slow_path(bandwidth: float, latency: float = 0.0) -> PathSettings:
    return PathSettings(bandwidth=bandwidth, latency=latency)


def costs_of(
    made: Program,
    seconds: dict[Kind, float],
    *,
    of: dict[tuple[str, Kind], float] | None = None,
    size: int = 1,
    activation: int = 0,
    state: int = 0,
    threads: int = 1,
) -> Costs:
    """The same cost for each kind of operation (0 where none is given), except those of `of`."""
    routes, operations = Routes(made, "actor"), {}  # costs have batches as the source's
    for name in routes.actors():
        for op in routes.operations(name, range(min(8, 2 + made.blocks))):
            sends = {a.to: Sent(a.to, a.key.what, size) for a in routes.sends(name, op)}
            took = (of or {}).get((name, op.kind), seconds.get(op.kind, 0.0))
            before = operations.get((name, op.kind), OperationCost(seconds=took)).sends
            merged = tuple(dict.fromkeys([*before, *sends.values()]))
            operations[name, op.kind] = OperationCost(seconds=took, sends=merged)
    names = [name for name in programs(made, range(1)) if name != SOURCE]
    return Costs(
        operations=operations,
        activation_bytes=dict.fromkeys(names, activation),
        state_bytes=dict.fromkeys(names, state),
        threads=threads,
    )


def times(forward: float, backward: float, update: float = 0.0) -> dict[Kind, float]:
    """Seconds of forwards, of backwards whatever loss they are of, and of updates."""
    return {
        Kind.FORWARD: forward,
        Kind.ASSESS: backward,
        Kind.GRADIENT: backward,
        Kind.UPDATE: update,
    }


def made_program(rule: Rule, blocks: int, shards: int = 1) -> Program:
    return program(rule, blocks, shards)


def run(
    rule: Rule, blocks: int, shards: int = 1, *, source: SourcePlace = "actor", **more
) -> Prediction:
    """Equal blocks, a device each, messages free unless told otherwise; batches take no time."""
    made = made_program(rule, blocks, shards)
    cluster = more.pop("cluster", FREE)
    devices = more.pop("devices", range(blocks))
    window = more.pop("window", 3)
    steps = more.pop("steps", None)
    costs = costs_of(made, more.pop("seconds", times(1.0, 2.0)), **more)
    return simulate(
        made,
        costs,
        cluster,
        list(devices),
        source=source,
        window=window,
        steps=steps,
        record=True,
    )
