"""Simulated actors: each goes through its program, waits for messages and sends them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

from actors.operations import Kind, Operation
from actors.transport import lowest_room
from learning.build import Program
from learning.errors import UserError
from learning.messages import Key
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE
from orchestrator.program import channels
from orchestrator.simulation_routes import Address, Routes
from orchestrator.simulation_servers import Clock, Memory, Place


class Work(NamedTuple):
    """One operation in simulated time, in seconds; it may have shared its device."""

    actor: str
    operation: Operation
    started: float
    ended: float


class Sizes:
    """Bytes of messages by sender and kind: the largest where they differ by receiver."""

    def __init__(self, costs: Costs) -> None:
        self._sizes: dict[tuple[str, str], int] = {}
        for (actor, _), cost in costs.operations.items():
            for sent in cost.sends:
                at = (actor, sent.what)
                self._sizes[at] = max(sent.size, self._sizes.get(at, 0))

    def of(self, sender: str, key: Key) -> int:
        """Bytes of one message.

        Raises:
            UserError: when the costs do not know such a message.
        """
        if not self.knows(sender, key):
            raise UserError(
                f"the costs have no size of message {key.what!r} from {sender}: measure them "
                "with the same rule"
            )
        return self._sizes[sender, key.what]

    def knows(self, sender: str, key: Key) -> bool:
        """Whether the costs have such a message."""
        return (sender, key.what) in self._sizes


@dataclass
class Channel:
    """The sender's end of the way to one receiver, with the window of `actors/transport.py`.

    A sender that meets a full window waits until it has heard that the oldest messages were taken,
    as many as `lowest_room` says.
    """

    window: int | None
    under_way: deque[Key] = field(default_factory=deque)
    taken: dict[Key, float] = field(default_factory=dict)
    """When the sender hears that a message was taken."""
    blocked: Callable[[], None] | None = None

    def room_at(self) -> float | None:
        """When the sender may go on after a full window; None while that is not known."""
        assert self.window is not None
        oldest = list(islice(self.under_way, lowest_room(self.window)))
        if any(key not in self.taken for key in oldest):
            return None
        return max(self.taken[key] for key in oldest)

    def make_room(self) -> None:
        """Forget the oldest messages, which were taken."""
        assert self.window is not None
        for _ in range(lowest_room(self.window)):
            del self.taken[self.under_way.popleft()]


@dataclass
class SimulatedActor:
    """One actor.

    Attributes:
        device: carries out its operations, except making batches.
        host: makes batches.
        memory: of its device.
        deliver: puts a message of some size on its way: (sender, address, size).
        peers: all actors, by name.
        heard: seconds until the sender of a message hears that it was taken, by the sender's name.
        extra: seconds of an operation besides its cost, and of each message and byte that it sends.
    """

    name: str
    routes: Routes
    costs: Costs
    sizes: Sizes
    clock: Clock
    device: Place
    host: Place
    memory: Memory
    operations: list[Operation]
    deliver: Callable[[SimulatedActor, Address, int], None]
    heard: Callable[[str], float]
    peers: Mapping[str, SimulatedActor]
    extra: tuple[float, float, float]
    window: int
    record: list[Work] | None = None

    def __post_init__(self) -> None:
        program: Program = self.routes.program
        self.channels = {
            name: Channel(window)
            for name, window in channels(program, self.name, self.window).items()
        }
        self.updated: list[float] = []  # when each step was done
        self._position = 0
        self._mail: dict[Key, tuple[int, str]] = {}
        self._takes: list[Key] = []
        self._missing: set[Key] = set()
        self._started = 0.0
        self._gradients: Counter[tuple[int, int]] = Counter()
        self._shard_bytes = self.costs.activation_bytes.get(self.name, 0)
        self._last = self._backwards()

    @property
    def finished(self) -> bool:
        return self._position == len(self.operations)

    def _backwards(self) -> Counter[tuple[int, int]]:
        """How many backward operations each shard of each step has."""
        kinds = (Kind.ASSESS, Kind.GRADIENT)
        return Counter((op.step, op.shard) for op in self.operations if op.kind in kinds)

    def go_on(self) -> None:
        """Begin the next operation, or wait for its messages."""
        if self.finished:
            return
        op = self.operations[self._position]
        self._takes = self.routes.takes(self.name, op)
        self._missing = {key for key in self._takes if key not in self._mail}
        if not self._missing:
            self._begin(op)

    def receive(self, key: Key, size: int, sender: str) -> None:
        """A message is there."""
        assert key not in self._mail, (self.name, key)
        self._mail[key] = (size, sender)
        self.memory.add(size)
        if key in self._missing:
            self._missing.remove(key)
            if not self._missing:
                self._begin(self.operations[self._position])

    def _begin(self, op: Operation) -> None:
        self._started = self.clock.now
        for key in self._takes:
            size, sender = self._mail.pop(key)
            self.memory.add(-size)
            if sender != self.name:
                self.peers[sender].was_taken(self.name, key, self.clock.now + self.heard(sender))
        if op.kind is Kind.FORWARD:
            self.memory.add(self._shard_bytes)
        name = self._measured_as(op)
        posts = [(a, self.sizes.of(name, a.key)) for a in self.routes.sends(self.name, op)]
        batch = op.kind is Kind.BATCH
        place, threads = (self.host, 1) if batch else (self.device, self.costs.threads)
        overhead, message, byte = self.extra
        seconds = self._seconds(op) / place.speed + overhead
        seconds += sum(message + byte * size for a, size in posts if a.to != self.name)
        place.server.submit(seconds, threads, partial(self._done, op, deque(posts)))

    def _measured_as(self, op: Operation) -> str:
        """The actor of the costs: they have batches as the source's, whoever makes them here."""
        return SOURCE if op.kind is Kind.BATCH else self.name

    def _seconds(self, op: Operation) -> float:
        name = self._measured_as(op)
        cost = self.costs.operations.get((name, op.kind))
        if cost is None:
            raise UserError(
                f"the costs have no operation {op.kind.value!r} of {name}: measure them with the "
                "same rule"
            )
        return cost.seconds

    def _done(self, op: Operation, posts: deque[tuple[Address, int]]) -> None:
        if op.kind in (Kind.ASSESS, Kind.GRADIENT):
            shard = (op.step, op.shard)
            self._gradients[shard] += 1
            if self._gradients[shard] == self._last[shard]:
                self.memory.add(-self._shard_bytes)
        if op.kind in (Kind.UPDATE, Kind.FEEDBACK_UPDATE):
            self.updated.append(self.clock.now)
        self._send(op, posts)

    def _send(self, op: Operation, posts: deque[tuple[Address, int]]) -> None:
        """Send what the operation leaves; go on when the windows let all of it out."""
        while posts:
            address, size = posts[0]
            if address.to == self.name:  # its own batch is there at once
                posts.popleft()
                self.receive(address.key, size, self.name)
                continue
            channel = self.channels[address.to]
            if channel.window is not None:
                if len(channel.under_way) >= channel.window:
                    room = channel.room_at()
                    if room is None:
                        channel.blocked = partial(self._send, op, posts)
                        return
                    if room > self.clock.now:
                        self.clock.at(room, partial(self._send, op, posts))
                        return
                    channel.make_room()
                channel.under_way.append(address.key)
            posts.popleft()
            self.deliver(self, address, size)
        if self.record is not None:
            self.record.append(Work(self.name, op, self._started, self.clock.now))
        self._position += 1
        self.go_on()

    def was_taken(self, receiver: str, key: Key, heard: float) -> None:
        """The receiver has taken a message; this actor hears of it at `heard`."""
        channel = self.channels[receiver]
        if channel.window is None:
            return
        channel.taken[key] = heard
        if channel.blocked is not None and (room := channel.room_at()) is not None:
            then, channel.blocked = channel.blocked, None
            self.clock.at(room, then)
