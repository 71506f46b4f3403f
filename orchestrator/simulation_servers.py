"""What a simulated cluster works with: a clock, accelerators, shared cores, memory, ports."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from orchestrator.clusters import PathSettings

Then = Callable[[], None]


class Clock:
    """Events in the order of their time; those of one time in the order they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Then]] = []
        self._set = 0

    def at(self, time: float, then: Then) -> None:
        """Call `then` at `time`, in seconds from the beginning."""
        self._set += 1
        heapq.heappush(self._heap, (max(time, self.now), self._set, then))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._heap:
            self.now, _, then = heapq.heappop(self._heap)
            then()


class Server(Protocol):
    """Something that works."""

    busy: float
    """Work done so far, in seconds of one device."""

    def submit(self, seconds: float, threads: int, then: Then) -> None:
        """Take in work; `then` is called when it is done."""
        ...


class Accelerator:
    """One operation at a time, in the order in which they become ready."""

    def __init__(self, clock: Clock) -> None:
        self.busy = 0.0
        self._clock, self._queue, self._free = clock, deque[tuple[float, Then]](), True

    def submit(self, seconds: float, threads: int, then: Then) -> None:
        self._queue.append((seconds, then))
        if self._free:
            self._next()

    def _next(self) -> None:
        self._free = not self._queue
        if self._queue:
            seconds, then = self._queue.popleft()
            self._clock.at(self._clock.now + seconds, lambda: self._done(seconds, then))

    def _done(self, seconds: float, then: Then) -> None:
        self.busy += seconds
        self._next()
        then()


class Host:
    """Processors beside accelerators: there are enough of them that nothing waits."""

    def __init__(self, clock: Clock) -> None:
        self.busy = 0.0
        self._clock = clock

    def submit(self, seconds: float, threads: int, then: Then) -> None:
        self.busy += seconds
        self._clock.at(self._clock.now + seconds, then)


class Cores:
    """Cores of one node, shared evenly by all that is ready: processor sharing.

    With n threads on c cores each goes on at the rate

        min(1, (c - background) / n) (1 - contention (min(n, c) - 1) / (c - 1)) (1 - crowding o)

    where o = (n - c) / c, the threads too many, is kept between 0 and 1: threads that take turns on
    a core find its caches full of the others' data.
    The work that everyone has been given so far, `_given`, grows at that rate, so a job ends when
    it reaches what it was at its start plus the job's own work: a heap keeps the order.
    """

    def __init__(
        self,
        clock: Clock,
        cores: int,
        background: float = 0.0,
        contention: float = 0.0,
        crowding: float = 0.0,
    ) -> None:
        self.busy = 0.0
        self._clock, self._cores = clock, cores
        self._background, self._contention, self._crowding = background, contention, crowding
        self._jobs: list[tuple[float, int, int, Then]] = []
        self._threads = self._submitted = self._alarm = 0
        self._given = self._since = 0.0

    def submit(self, seconds: float, threads: int, then: Then) -> None:
        self._go_on()
        self._submitted += 1
        heapq.heappush(self._jobs, (self._given + seconds, self._submitted, threads, then))
        self._threads += threads
        self._set_alarm()

    def _rate(self) -> float:
        most = min(self._threads, self._cores)
        slower = self._contention * (most - 1) / (self._cores - 1) if self._cores > 1 else 0.0
        over = min(1.0, max(0, self._threads - self._cores) / self._cores)
        share = min(1.0, (self._cores - self._background) / self._threads)
        return share * (1 - slower) * (1 - self._crowding * over)

    def _go_on(self) -> None:
        """Give everyone the time since the last change."""
        passed, self._since = self._clock.now - self._since, self._clock.now
        if self._threads:
            self._given += passed * self._rate()
            # What background and contention take is not idle: the cores are at work.
            self.busy += passed * min(self._threads, self._cores)

    def _set_alarm(self) -> None:
        """For the job that ends first; an older alarm no longer counts."""
        self._alarm += 1
        if self._jobs:
            this, left = self._alarm, self._jobs[0][0] - self._given
            self._clock.at(self._clock.now + left / self._rate(), lambda: self._ring(this))

    def _ring(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._go_on()
        end, _, threads, then = heapq.heappop(self._jobs)
        self._given = end  # exactly: rounding must not leave a rest
        self._threads -= threads
        self._set_alarm()
        then()


class Place(NamedTuple):
    """Where operations are carried out."""

    server: Server
    speed: float  # relative to the machine of the costs


class Memory:
    """Bytes on one device, and the most there have been."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def add(self, size: int) -> None:
        """Hold `size` bytes more, or less where it is negative."""
        self.held += size
        self.peak = max(self.peak, self.held)


class Ports:
    """The ways out of and into one device or node; each carries one message after the other.

    Attributes:
        busy: seconds in which something went out.
    """

    def __init__(self, path: PathSettings) -> None:
        self.path = path
        self.busy = 0.0
        self.sent = 0
        self._out = self._in = 0.0

    def carry(self, size: int, to: Ports, now: float) -> float:
        """Send `size` bytes through `to`; returns when the last of them is there.

        The first bytes enter while the last still leave, unless another message is coming in.
        """
        took = size / self.path.bandwidth
        self._out = max(now, self._out) + took
        to._in = max(self._out, to._in + took)
        self.busy += took
        self.sent += size
        return to._in + self.path.latency
