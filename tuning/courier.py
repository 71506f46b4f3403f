"""A thread that brings the records of a queue to MLflow, so that nobody waits for either.

    put ──▶ queue on disk ──▶ [thread: MLflow's import, then batches] ──▶ MLflow

Training appends a line to a file and goes on. When MLflow fails the lines stay; the thread tries
again after 1, 2, 4, ... up to 60 s, and at the end of the run until its patience is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from learning.errors import UserError
from tuning.garbage import frozen_heap
from tuning.spool import Position, Record, Spool
from tuning.store import Store
from tuning.tracking import impatient, reason, redacted
from tuning.waiting_files import base_of

_log = logging.getLogger(__name__)

BATCH_SECONDS = 5.0
"""About so long metrics wait to be sent together."""
BATCH_RECORDS = 2000  # at most so many are read at once
LONGEST_PAUSE = 60.0  # seconds between attempts


class Courier:
    """The one who writes to an MLflow, for one process.

    Attributes:
        spool: where records wait.
        store: the MLflow, once it is reached.
    """

    def __init__(self, spool: Spool, reach: Callable[[], Store]) -> None:
        """Nothing is sent before `begin`.

        Args:
            reach: connects; called once, in the thread. What it raises is raised to who puts next.
        """
        self.spool, self._reach = spool, reach
        self.store: Store | None = None
        self._refusal: BaseException | None = None
        self._reached = threading.Event()
        self._state = threading.Condition()
        self._urgent = self._closing = False
        self._failure: str | None = None
        self._deadline = 0.0
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start to connect and to send, if that has not begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def put(self, record: Mapping[str, Any], *, urgent: bool = False) -> None:
        """Append a record to the queue.

        Args:
            urgent: whether it is sent at once, with all before it.

        Raises:
            UserError: when MLflow refused the connection.
        """
        self.check()
        self.spool.append(record)
        if urgent:
            with self._state:
                self._urgent = True
                self._state.notify_all()

    def check(self) -> None:
        """Raise what connecting raised, if it has."""
        if self._refusal is not None:
            raise self._refusal

    def wait(self) -> None:
        """Wait until MLflow is reached.

        Raises:
            UserError: when it refuses.
        """
        self.begin()
        self._reached.wait()
        self.check()

    @property
    def reached(self) -> bool:
        """Whether MLflow was reached."""
        return self.store is not None

    def name(self, key: str, seconds: float) -> str | None:
        """How MLflow calls something, after a wait of at most `seconds`; None: it is not known.

        While MLflow fails there is no wait.
        """
        until = time.monotonic() + seconds
        names = self.spool.names
        with self._state:
            while key not in names and self._failure is None:
                rest = until - time.monotonic()
                if rest <= 0 or not self._state.wait(rest):
                    break
        return names.get(key)

    def close(self, patience: float) -> int:
        """Send what waits, for at most `patience` seconds.

        Returns:
            How many records wait on.
        """
        if self._thread is None or self._refusal is not None:
            self.spool.close()
            return self.spool.waiting
        with self._state:
            self._closing, self._deadline = True, time.monotonic() + patience
            self._state.notify_all()
        self._thread.join(patience + 1)
        return self.spool.waiting

    @property
    def refused(self) -> bool:
        """Whether MLflow refused the connection, or the queue turned out to be damaged."""
        return self._refusal is not None

    def _work(self) -> None:
        try:
            self.store = self._reach()
        except BaseException as error:
            self._refusal = error
            return
        finally:
            self._reached.set()
        with impatient(), frozen_heap():
            try:
                self._send_all(self.store)
            except BaseException as error:
                self._refusal = error
            finally:
                try:
                    self.spool.close()
                except UserError as error:  # what is sent is sent
                    _log.warning("%s", error)

    def _send_all(self, store: Store) -> None:
        pause = 0.0
        while True:
            closing = self._woken(pause)
            pause = 0.0 if self._attempt(store) else min(LONGEST_PAUSE, 2 * pause or 1.0)
            if not closing:
                continue
            rest = self._deadline - time.monotonic()
            if not self.spool.waiting or rest <= 0:
                return
            time.sleep(min(pause, rest))

    def _woken(self, pause: float) -> bool:
        """Wait for a batch, or for a while after a failure; whether the end has come."""
        with self._state:
            self._state.wait_for(
                lambda: self._closing or (self._urgent and not pause), pause or BATCH_SECONDS
            )
            self._urgent = False
            return self._closing

    def _attempt(self, store: Store) -> bool:
        """Send all that waits; whether that went well."""
        try:
            while records := self.spool.read(BATCH_RECORDS):
                base = base_of(self.spool.path)
                store.deliver(records, self._sent, self._refuse, self.spool.append, base)
        except UserError:
            raise  # the queue is damaged
        except Exception as error:  # of MLflow, a database driver, requests or the system
            self._failed(reason(error), store)
            return False
        with self._state:
            if self._failure is not None:
                _log.warning("MLflow takes records again")
            self._failure = None
            self._state.notify_all()
        return True

    def _sent(self, position: Position, count: int) -> None:
        self.spool.sent(position, count)
        with self._state:  # somebody may wait for a name
            self._state.notify_all()

    def _failed(self, why: str, store: Store) -> None:
        with self._state:
            if self._failure is None:
                _log.warning(
                    "MLflow at %s fails (%s): training goes on, and records wait in %s",
                    redacted(store.uri),
                    why,
                    self.spool.path,
                )
            self._failure = why
            self._state.notify_all()

    def _refuse(self, record: Record, why: str) -> None:
        _log.warning(
            "MLflow refuses a record (%s): it is in %s", why, self.spool.path / "refused.jsonl"
        )
        self.spool.refuse(record, why)


def relative(path: Path, base: Path) -> str:
    """A path as a record has it: relative below `base`, so that the directory can be moved."""
    path = path.absolute()
    return str(path.relative_to(base.absolute()) if path.is_relative_to(base.absolute()) else path)


def left_behind(records: int, uri: str, queue: Path) -> str:
    """What to say about records that wait on after the end."""
    return (
        f"{records} records for MLflow at {uri} wait in {queue}: send them with "
        f"blocklocal track {base_of(queue)}"
    )
