"""Kills processes at given moments; knows no more than the operating system's list of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

ACTORS = ("ray::_Block", "ray::_Feedback", "ray::_Source")
"""How the processes of our actors are called; those that wait for an actor are called otherwise."""
LOOK_SECONDS = 0.05  # between looks for a victim where there is none

Victim = list[psutil.Process]
"""Processes that end together; the first one gives its name."""


@dataclass(frozen=True)
class Kill:
    """One kill: when, in Unix seconds, and the processes that ended by it."""

    at: float
    name: str
    processes: tuple[int, ...]


def moments(kills: int, between: float, seed: int) -> list[float]:
    """When to kill, in seconds, sorted.

    Kills at exponential intervals of the mean `between` of which so many fall into
    `kills * between` seconds lie there as if each moment had been drawn evenly.
    """
    draw = random.Random(seed)
    return sorted(draw.uniform(0, kills * between) for _ in range(kills))


def named(process: psutil.Process, names: tuple[str, ...]) -> bool:
    """Whether a process is alive and its name begins with one of these."""
    try:
        return process.name().startswith(names) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False  # it has ended since it was listed


def actors() -> list[Victim]:
    """The actors below this process, each one a victim."""
    below = psutil.Process().children(recursive=True)
    return [[process] for process in below if named(process, ACTORS)]


def nodes() -> list[Victim]:
    """The processes of each node below this process on which there are actors of ours."""
    found: list[Victim] = []
    for raylet in psutil.Process().children():
        try:
            workers = raylet.children(recursive=True) if named(raylet, ("raylet",)) else []
        except psutil.NoSuchProcess:
            continue  # it has ended since it was listed
        if any(named(process, ACTORS) for process in workers):
            found.append([raylet, *workers])
    return found


def kill_one(victims: Sequence[Victim], draw: random.Random) -> Kill | None:
    """Kill one of the victims with SIGKILL; None where there is none, or it had just ended."""
    if not victims:
        return None
    first, *others = draw.choice(sorted(victims, key=lambda victim: victim[0].pid))
    try:
        name, at = first.name(), time.time()
        first.kill()
    except psutil.NoSuchProcess:
        return None
    for process in others:
        with suppress(psutil.NoSuchProcess):  # it ended with the first one
            process.kill()
    return Kill(at, name, tuple(process.pid for process in (first, *others)))


class Killer(threading.Thread):
    """Kills at each of the given moments after its start, until it is stopped.

    Attributes:
        began: Unix seconds; 0 before it is started.
        kills: those so far.
    """

    def __init__(
        self, moments: Sequence[float], seed: int, victims: Callable[[], list[Victim]] = actors
    ) -> None:
        super().__init__(daemon=True)
        self._moments, self._draw, self._victims = moments, random.Random(seed), victims
        self._over = threading.Event()
        self.began = 0.0
        self.kills: list[Kill] = []

    def start(self) -> None:
        """The clock starts now."""
        self.began = time.time()
        super().start()

    def run(self) -> None:
        """Wait, choose, kill."""
        for moment in self._moments:
            wait = max(0.0, self.began + moment - time.time())
            while not self._over.wait(wait):
                dead = {process for kill in self.kills for process in kill.processes}
                victims = [v for v in self._victims() if v[0].pid not in dead]
                kill = kill_one(victims, self._draw)
                if kill is not None:
                    self.kills.append(kill)
                    break
                wait = LOOK_SECONDS  # all are being replaced at this moment
            else:
                return

    def stop(self) -> None:
        """Kill nobody from now on."""
        self._over.set()
        if self.is_alive():
            self.join()
