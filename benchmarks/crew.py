"""Fresh processes that the peers of our engine run in: started anew, one torch thread each."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from actors.memory import keep_freed_memory

T = TypeVar("T")
P = ParamSpec("P")
BARRIER_SECONDS = 60.0  # for the others to be ready
CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class Seat:
    """One process's place in its crew.

    Attributes:
        barrier: of all processes of the crew.
    """

    rank: int
    size: int
    barrier: Any


class Crew:
    """`size` processes that run the same function at once; idle ones wait without using a core."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        # Kept: its semaphores vanish with it, and the processes open them while they start.
        self._barrier = barrier = context.Barrier(size, timeout=BARRIER_SECONDS)
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            mine, theirs = context.Pipe()
            seat = Seat(rank, size, barrier)
            process = context.Process(target=_work, args=(seat, theirs), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(mine)
            self._processes.append(process)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        task: Callable[Concatenate[Seat, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """Run `task(seat, ...)` in every process; returns what they returned, by rank.

        Raises:
            RuntimeError: with the trace of a process that failed; the crew is of no use then.
        """
        for connection in self._connections:
            connection.send((task, args, kwargs))
        return [self._answer(rank) for rank in range(len(self._connections))]

    def run_alone(
        self,
        task: Callable[Concatenate[Seat, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `task` in the first process only, while the others stay idle."""
        self._connections[0].send((task, args, kwargs))
        return self._answer(0)

    def _answer(self, rank: int) -> Any:
        try:
            failed, result = self._connections[rank].recv()
        except (EOFError, ConnectionError) as error:
            self._processes[rank].join()
            code = self._processes[rank].exitcode
            raise RuntimeError(f"process {rank} of the crew ended with code {code}") from error
        if failed:
            raise RuntimeError(f"process {rank} of the crew failed:\n{result}")
        return result

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(CLOSING_SECONDS)
            if process.is_alive():  # it hangs in a task whose peer failed
                process.kill()
                process.join()


def _work(seat: Seat, connection: Connection) -> None:
    keep_freed_memory()  # as our actors do: not what is compared here
    torch.set_num_interop_threads(1)
    torch.set_num_threads(1)
    while True:
        try:
            task, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            answer = False, task(seat, *args, **kwargs)
        except Exception:
            # The caller raises it: an exception of a library may not survive the way there.
            answer = True, traceback.format_exc()
        connection.send(answer)


def free_port() -> int:
    """A TCP port on loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
