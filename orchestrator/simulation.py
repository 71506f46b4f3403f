"""Predicts a run by discrete events: steps/s, idle devices and memory on a described cluster.

Simulated actors execute the operation lists that the real ones get (`orchestrator/program.py`),
over measured costs (`orchestrator/costs.py`). docs/simulator.md has the model and what it leaves
out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from learning.build import Program
from learning.errors import UserError
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE, number
from orchestrator.simulation_actors import Memory, SimulatedActor, Sizes, Work
from orchestrator.simulation_routes import Address, Routes
from orchestrator.simulation_servers import Accelerator, Clock, Cores, Host, Ports, Server

STEPS = 32
OPERATIONS = 100_000
"""About as many are simulated at most; a few seconds."""
FEWEST_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a simulated run was like, once it had settled.

    Attributes:
        steps_per_second: over the third quarter of the steps.
        completions: when each step was done by all learners, in seconds.
        idle: share of each device's time, by device; on a CPU node, of all its cores together that
            the run has.
        peak_bytes: most memory that was held at once, by device.
        bytes_a_step: sent by all actors.
        work_a_step: seconds that each device works for a step.
        port_share: share of its time in which the busiest port sends.
        simulated_seconds: how long the run took in its own time.
        seconds: how long the simulation took.
        work: every operation, where that was asked for.
    """

    steps_per_second: float
    completions: tuple[float, ...]
    idle: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    bytes_a_step: float
    work_a_step: tuple[float, ...]
    port_share: float
    simulated_seconds: float
    seconds: float
    work: tuple[Work, ...] = ()

    @property
    def limit(self) -> str:
        """What keeps the run from being faster, in a word."""
        if 1 - min(self.idle) >= 0.95:
            return "devices"
        return "bandwidth" if self.port_share >= 0.95 else "waiting"


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
    window: int = 3,
    steps: int | None = None,
    record: bool = False,
) -> Prediction:
    """Simulate a run from its first step.

    Feedback module k is on block k's device. The source is on the first block's node: beside its
    accelerators, or on its cores.

    Args:
        costs: of every actor of `program`, on a device of speed 1.
        devices: of blocks 1..K, counted from 0 over all nodes. The run has these devices and those
            before the highest of them: of CPU nodes that many cores, shared by all on a node.
        window: steps that a block may run ahead of the next one.
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
    machine = _Machine(program, costs, cluster, devices, window * program.settings.shards)
    work: list[Work] | None = [] if record else None
    for actor in machine.build(steps, work):
        actor.go_on()
    machine.clock.run()
    stuck = [a.name for a in machine.actors.values() if not a.finished]
    assert not stuck, f"deadlock: {stuck}"
    return machine.prediction(steps, time.perf_counter() - began, work or [])


class _Machine:
    """A cluster at work on one program."""

    def __init__(
        self,
        program: Program,
        costs: Costs,
        cluster: ClusterDescription,
        devices: Sequence[int],
        messages: int,
    ) -> None:
        self.program, self.costs, self.cluster = program, costs, cluster
        self.messages = messages
        self.clock = Clock()
        self.actors: dict[str, SimulatedActor] = {}
        used = max(devices) + 1
        self._nodes = range((used - 1) // cluster.devices + 1)
        # A run has the cores that it was asked for, not all that its last node has.
        self._cores_of_nodes = [
            min(cluster.devices, used - n * cluster.devices) for n in self._nodes
        ]
        self._shared = cluster.kind == "cpu"
        # From here on a device is what has a server of its own: a CPU node is one.
        self._device = [d // cluster.devices if self._shared else d for d in devices]
        self._servers: list[Server]
        if self._shared:
            self._servers = [self._cores(n) for n in self._cores_of_nodes]
            self._hosts = self._servers
        else:
            self._servers = [Accelerator(self.clock) for _ in range(used)]
            self._hosts = [Host(self.clock) for _ in self._nodes]
        self._memory = [Memory() for _ in self._servers]
        self._within = [Ports(cluster.within) for _ in self._servers]
        self._between = [Ports(cluster.between) for _ in self._nodes]

    def _cores(self, count: int) -> Cores:
        """`count` cores of a CPU node. Daemons use its other cores first.

        Contention is that of the whole node: `count` busy cores of it are slower than one by their
        share.
        """
        cluster = self.cluster
        background = max(0.0, cluster.background - (cluster.devices - count))
        share = (count - 1) / (cluster.devices - 1) if cluster.devices > 1 else 0.0
        return Cores(self.clock, count, background, cluster.contention * share)

    def build(self, steps: int, record: list[Work] | None) -> list[SimulatedActor]:
        """Place all actors."""
        routes, sizes, message = Routes(self.program), Sizes(self.costs), self.cluster.message
        extra = (self.cluster.overhead, message.send, message.send_per_byte)
        for name in routes.actors():
            device = self._of(name)
            source = name == SOURCE
            actor = SimulatedActor(
                name=name,
                routes=routes,
                costs=self.costs,
                sizes=sizes,
                clock=self.clock,
                server=self._hosts[self._node(device)] if source else self._servers[device],
                memory=Memory() if source else self._memory[device],
                operations=routes.operations(name, range(steps)),
                deliver=self._deliver,
                heard=lambda sender, here=device: self._path(self._of(sender), here).path.latency,
                peers=self.actors,
                speed=1.0 if source and not self._shared else self.cluster.speed,
                extra=extra,
                window=self.messages,
                record=record,
            )
            actor.memory.add(self.costs.state_bytes.get(name, 0))
            self.actors[name] = actor
        return list(self.actors.values())

    def _of(self, name: str) -> int:
        return self._device[0 if name == SOURCE else number(name) - 1]

    def _node(self, device: int) -> int:
        return device if self._shared else device // self.cluster.devices

    def _path(self, here: int, there: int) -> Ports:
        if self._node(here) == self._node(there):
            return self._within[here]
        return self._between[self._node(here)]

    def _deliver(self, sender: SimulatedActor, address: Address, size: int) -> None:
        """Put a message on its way: the ports, then the receiver's CPU, then its mailbox."""
        here, there = self._of(sender.name), self._of(address.to)
        arrived = self._path(here, there).carry(size, self._path(there, here), self.clock.now)
        message = self.cluster.message
        if message.daemons:
            self._hosts[self._node(here)].submit(message.daemons, 1, _nothing)
        receiver = self.actors[address.to]
        deliver = partial(receiver.receive, address.key, size, sender.name)
        takes = message.receive + message.receive_per_byte * size
        if takes:
            host = self._hosts[self._node(there)]
            self.clock.at(arrived, lambda: host.submit(takes, 1, deliver))
        else:
            self.clock.at(arrived, deliver)

    def prediction(self, steps: int, seconds: float, work: list[Work]) -> Prediction:
        """What there is to say at the end."""
        learners = [a for name, a in self.actors.items() if name != SOURCE]
        updates = zip(*(learner.updated for learner in learners), strict=True)
        completions = tuple(max(times) for times in updates)
        # Before, the pipeline fills; after, actors drain what others no longer add to.
        first = steps // 2 - 1
        last = max(first + 1, 3 * steps // 4 - 1)
        if completions[last] == completions[first]:
            raise UserError("the costs are 0 seconds throughout: measure them")
        rate = (last - first) / (completions[last] - completions[first])
        # Work is counted over the whole run: the first blocks are done long before the last.
        cores = self._cores_of_nodes if self._shared else [1] * len(self._servers)
        each = tuple(server.busy / steps for server in self._servers)
        ports = [*self._within, *self._between]
        return Prediction(
            steps_per_second=rate,
            completions=completions,
            idle=tuple(max(0.0, 1 - rate * b / n) for b, n in zip(each, cores, strict=True)),
            peak_bytes=tuple(memory.peak for memory in self._memory),
            bytes_a_step=sum(port.sent for port in ports) / steps,
            work_a_step=each,
            port_share=min(1.0, rate * max(port.busy for port in ports) / steps),
            simulated_seconds=self.clock.now,
            seconds=seconds,
            work=tuple(work),
        )


def _nothing() -> None:
    """Nobody waits for daemons."""
