"""A simulated cluster at work on one program: who is placed where, and how messages get around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from learning.build import Program
from learning.errors import UserError
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE, number
from orchestrator.settings import SourcePlace
from orchestrator.simulation_actors import SimulatedActor, Sizes, Work
from orchestrator.simulation_routes import Address, Routes
from orchestrator.simulation_servers import (
    Accelerator,
    Clock,
    Cores,
    Host,
    Memory,
    Place,
    Ports,
    Server,
)


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


class Machine:
    """A cluster at work on one program.

    Args:
        devices: of blocks 1..K.
        source: who makes the batches.
        messages: window of a channel with activations.
    """

    def __init__(
        self,
        program: Program,
        costs: Costs,
        cluster: ClusterDescription,
        devices: Sequence[int],
        source: SourcePlace,
        messages: int,
    ) -> None:
        self.program, self.costs, self.cluster = program, costs, cluster
        self.source: SourcePlace = source
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
        slower = cluster.contention * share
        return Cores(self.clock, count, background, slower, cluster.crowding)

    def build(self, steps: int, record: list[Work] | None) -> list[SimulatedActor]:
        """Place all actors."""
        routes, sizes = Routes(self.program, self.source), Sizes(self.costs)
        message = self.cluster.message
        extra = (self.cluster.overhead, message.send, message.send_per_byte)
        for name in routes.actors():
            device = self._of(name)
            actor = SimulatedActor(
                name=name,
                routes=routes,
                costs=self.costs,
                sizes=sizes,
                clock=self.clock,
                device=Place(self._servers[device], self.cluster.speed),
                host=self._host(device),
                memory=Memory() if name == SOURCE else self._memory[device],
                operations=routes.operations(name, range(steps)),
                deliver=self._deliver,
                heard=lambda sender, here=device: self._path(self._of(sender), here).path.latency,
                peers=self.actors,
                extra=extra,
                window=self.messages,
                record=record,
            )
            actor.memory.add(self.costs.state_bytes.get(name, 0))
            self.actors[name] = actor
        return list(self.actors.values())

    def _host(self, device: int) -> Place:
        """Where batches are made: on cores, or beside accelerators, whose `speed` is not theirs."""
        speed = self.cluster.speed if self._shared else 1.0
        return Place(self._hosts[self._node(device)], speed)

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
