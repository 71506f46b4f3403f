"""The life of a trial in one process: a thread that trains, and waits at each report.

Tune          train() ──▶ waits ◀── report        save()      stop()
▲                       │            │
the thread    training ──▶ evaluated, saved ──▶ waits for train() or the end
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Mapping
from typing import Any

from learning.errors import UserError
from orchestrator.trainer import StopTraining
from tuning.jobs import FAILED, STEP, Job, Request


class Life:
    """A thread that trains, and waits at each report until it is asked for the next."""

    def __init__(self, job: Job, request: Request) -> None:
        self._job, self._request = job, request
        self._reports: queue.SimpleQueue[dict[str, Any] | BaseException | None]
        self._reports = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._over = False
        self._last: dict[str, Any] = {}
        self._waits = False
        self._thread = threading.Thread(target=self._train, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> dict[str, Any]:
        """Wait for the next report; the last one, again and done, at the end."""
        if self._waits:
            self._waits = False
            self._go.release()
        told = self._take()
        if FAILED not in told and told.pop("last"):
            self._go.release()  # let it finish: a trial that is done is stopped at once
            told = {**told, **self._take(), "done": True}
        else:
            self._waits = True
        self._last = told
        return told

    def _take(self) -> dict[str, Any]:
        told = self._reports.get()
        if isinstance(told, UserError):
            return self._failed(str(told))
        if isinstance(told, BaseException):
            raise told
        return told or {}

    def _failed(self, sentence: str) -> dict[str, Any]:
        """What Tune hears of a trial that would fail again: no reason to try."""
        before = {STEP: self._request.told, **self._last}
        return {**before, self._job.metric: self._job.worst, FAILED: sentence, "done": True}

    def end(self) -> None:
        """End the thread and what it holds."""
        self._over = True
        self._go.release()
        self._thread.join()

    def _train(self) -> None:
        try:
            self._job.run(self._request, self)
        except StopTraining:
            return
        except BaseException as error:
            self._reports.put(error)
            return
        self._reports.put(None)

    def check(self) -> None:
        if self._over:
            raise StopTraining(checkpoint=None)

    def tell(self, steps: int, metrics: Mapping[str, float], last: bool) -> None:
        self.check()
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if not math.isfinite(value := metrics.get(self._job.metric, 0.0)):
            raise UserError(
                f"{self._job.metric} is {value} after {steps} steps: leave these values out of the "
                "space, or lower optimizer.lr"
            )
        if self._job.metric not in finite:
            raise UserError(
                f"this run has no {self._job.metric}: choose a sweep.metric that all rules of the "
                "space have"
            )
        self._reports.put({STEP: steps, **finite, "last": last})
        self._go.acquire()
        self.check()
