"""Runs the jobs of a study, each in a process of its own, some at once."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from blocklocal.compare.one import work
from blocklocal.compare.progress import StudyProgress
from blocklocal.compare.study import Combination
from blocklocal.config import RunConfig
from blocklocal.signals import SIGNALS, handled

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one process does: a run, or counting the costs of a combination."""

    kind: Literal["run", "costs"]
    combination: Combination
    seed: int

    @property
    def label(self) -> str:
        """What to call it."""
        what = f"seed {self.seed}" if self.kind == "run" else "costs"
        return f"{self.combination.label}, {what}"

    @property
    def config(self) -> RunConfig:
        """What to run."""
        return self.combination.config(self.seed)


@dataclass(frozen=True)
class Failure:
    """A job that ended without a result, and why."""

    label: str
    error: str


# A server that has imported everything once forks the processes: imports take seconds. The second
# is what some of torch's optimizers import when they are first used.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["blocklocal.compare.one", "torch._dynamo"])


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    finished: Callable[[Job, Result], str],
    progress: StudyProgress,
) -> list[Failure]:
    """Run all jobs; those that fail do not keep the others from running.

    Args:
        finished: called with each result; says it in words.
    """
    failures: list[Failure] = []
    waiting, running = deque(jobs), dict[Connection, tuple[Job, BaseProcess]]()
    _start_server()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                with _uninterrupted():
                    running |= _start(job)
                progress.started(job.label)
            for ready in connection.wait(list(running)):
                assert isinstance(ready, Connection)
                job, process = running[ready]
                said = _heard(ready, process)
                if "step" in said:
                    progress.stepped(job.label, said["step"], said["steps"])
                    continue
                del running[ready]
                process.join()
                if "result" in said:
                    progress.ended(job.label, finished(job, said["result"]))
                else:
                    failures.append(Failure(job.label, said["error"]))
                    progress.ended(job.label, f"FAILED: {said['error']}")
    finally:
        for _, process in running.values():
            process.kill()  # their directories are temporary, their records not there yet
            process.join()
    return failures


def _start_server() -> None:
    """Start what forks the processes, with the signals blocked that are for this process.

    Slurm sends them to all, and a server that has ended cannot start what it is about to.
    """
    resource_tracker.ensure_running()  # or it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold requests to stop back: in the middle of a start one would break the server."""
    with handled() as stopping:
        with stopping.patiently():
            yield
        stopping.check()


def _start(job: Job) -> dict[Connection, tuple[Job, BaseProcess]]:
    mine, its = _CONTEXT.Pipe(duplex=False)
    tree = job.config.model_dump(mode="json")
    arguments = (job.kind, tree, its, os.getcwd(), dict(os.environ))
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    its.close()  # or its end would not be noticed
    return {mine: (job, process)}


def _heard(ready: Connection, process: BaseProcess) -> dict[str, Any]:
    try:
        return ready.recv()
    except EOFError:  # killed, perhaps for memory
        process.join()
        return {"error": f"its process ended with code {process.exitcode} and without a word"}
