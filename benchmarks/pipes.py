"""One message between two processes without Ray: through a pipe, or through shared memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import torch

from benchmarks.crew import Crew, Seat
from benchmarks.echo import FLOAT, read

Timed = tuple[list[float], float]
"""Seconds of each round trip, and of the stream."""

_TOKEN = b"t"


def over_pipe(crew: Crew, size: int, warmup: int, count: int, window: int) -> Timed:
    """`send_bytes` into a duplex pipe, `recv_bytes_into` memory that is there already.

    Args:
        size: of a message in bytes.
        warmup, count: messages before the clock starts, and after.
        window: most messages of the stream under way.
    """
    ends = multiprocessing.Pipe()
    with closing(ends[0]), closing(ends[1]):
        return crew.run(_pipe_end, ends, size, warmup, count, window)[0]


def over_shared_memory(crew: Crew, size: int, warmup: int, count: int, window: int) -> Timed:
    """Copied into one of `window` places and read there; a pipe carries a token for each."""
    ends = multiprocessing.Pipe()
    places = [SharedMemory(create=True, size=window * size) for _ in range(2)]
    try:
        names = [place.name for place in places]
        with closing(ends[0]), closing(ends[1]):
            return crew.run(_memory_end, ends, names, size, warmup, count, window)[0]
    finally:
        for place in places:
            place.close()
            place.unlink()


def _pipe_end(
    seat: Seat,
    ends: tuple[Connection, Connection],
    size: int,
    warmup: int,
    count: int,
    window: int,
) -> Timed:
    pipe = ends[seat.rank]
    outgoing, incoming = torch.ones(size // FLOAT), torch.empty(size // FLOAT)
    out, into = outgoing.numpy().data.cast("B"), incoming.numpy().data.cast("B")

    def send(_: int) -> None:
        pipe.send_bytes(out)

    def take(_: int) -> None:
        pipe.recv_bytes_into(into)
        read(incoming)

    return _exchange(seat, pipe, send, take, warmup, count, window)


def _memory_end(
    seat: Seat,
    ends: tuple[Connection, Connection],
    names: list[str],
    size: int,
    warmup: int,
    count: int,
    window: int,
) -> Timed:
    memories = [SharedMemory(name) for name in names]
    try:
        return _over_places(seat, ends[seat.rank], memories, size, warmup, count, window)
    finally:
        for memory in memories:
            memory.close()


def _over_places(
    seat: Seat,
    pipe: Connection,
    memories: list[SharedMemory],
    size: int,
    warmup: int,
    count: int,
    window: int,
) -> Timed:
    """Apart from its caller, who can close the memory only when no tensor is a view of it."""
    numbers = size // FLOAT
    mine, other = (
        torch.frombuffer(m.buf, dtype=torch.float32, count=window * numbers).view(window, numbers)
        for m in (memories[seat.rank], memories[1 - seat.rank])
    )
    outgoing = torch.ones(numbers)

    def send(i: int) -> None:
        mine[i % window].copy_(outgoing)
        pipe.send_bytes(_TOKEN)

    def take(i: int) -> None:
        pipe.recv_bytes()
        read(other[i % window])

    return _exchange(seat, pipe, send, take, warmup, count, window)


def _exchange(
    seat: Seat,
    pipe: Connection,
    send: Callable[[int], None],
    take: Callable[[int], None],
    warmup: int,
    count: int,
    window: int,
) -> Timed:
    """Round trips, then a stream, of which the receiver answers each message."""
    near = seat.rank == 0
    trips: list[float] = []
    for i in range(warmup + count):
        started = time.perf_counter()
        for step in (send, take) if near else (take, send):
            step(i)
        trips.append(time.perf_counter() - started)
    started = 0.0
    for i in range(warmup + count):
        if near:
            if i >= window:
                pipe.recv_bytes()
            send(i)
        else:
            take(i)
            pipe.send_bytes(_TOKEN)
        if i == warmup - 1:
            started = time.perf_counter()
    stream = time.perf_counter() - started
    if not near:
        pipe.send_bytes(str(stream).encode())
        return trips[warmup:], stream
    for _ in range(min(window, warmup + count)):
        pipe.recv_bytes()  # answers to the last messages
    # The stream ends when the receiver has read its last message: its clock counts.
    return trips[warmup:], float(pipe.recv_bytes())
