"""Ray Tune's own state of a sweep: kept whole, read again, and kept from being silent about it.

It is in `tune/` of the sweep's directory: pickles that only Ray reads. Beside it is a copy of the
newest whole one, since a driver that is killed while it writes leaves half of one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from learning.errors import UserError
from orchestrator.record_files import check_no_link, writing

STATE, KEPT = "tune", "tune.kept"
"""In a sweep's directory: Tune's state, and its copy."""
SAVE_SECONDS = 2.0
INTERRUPTS = signal.SIGUSR1
"""At which Tune ends its trials in order and saves its state."""
MANY_TRIALS = 200
"""With more, Tune decides itself how often it saves its state, which then takes a while."""
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is one of several requests to stop
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Keeper:
    """Keeps a copy of Tune's newest whole state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next, self._kept = float("-inf"), 0

    def look(self) -> None:
        """Copy the state if there is a newer one."""
        if time.monotonic() < self._next:
            return
        began = time.monotonic()
        # Tune writes whenever it likes, and the next look is soon.
        with writing(self._directory / KEPT), suppress(FileNotFoundError):
            self._look()
        ended = time.monotonic()
        self._next = ended + max(SAVE_SECONDS, 20 * (ended - began))  # a twentieth of all time

    def _look(self) -> None:
        newest = _newest(self._directory / STATE)
        if newest is None or newest.stat().st_mtime_ns == self._kept or not _is_whole(newest):
            return
        self._kept = newest.stat().st_mtime_ns
        new, kept = self._directory / f"{KEPT}.new", self._directory / KEPT
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for file in _files(newest.parent):
            shutil.copy2(file, new)
        if _is_whole(new / newest.name):  # it may have been written to meanwhile
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(new, kept)


def restore_state(directory: Path) -> bool:
    """Make sure that Tune finds a whole state; False: there is none, and it begins anew.

    All trials find their runs again even then, since points and numbers of trials are the same.
    """
    state, kept = directory / STATE, directory / KEPT
    for one in (state, kept):
        check_no_link(one, "put a directory in its place")
    newest = _newest(state)
    if newest is not None and _is_whole(newest):
        return True
    with writing(state):
        for damaged in _files(state):
            damaged.unlink()
        whole = _newest(kept)
        if whole is None or not _is_whole(whole):
            return False
        state.mkdir(exist_ok=True)
        for file in _files(kept):
            shutil.copy2(file, state)
    return True


def _files(directory: Path) -> list[Path]:
    """The files of Tune's state: trials as JSON, and what its searcher keeps."""
    if not directory.is_dir():
        return []
    return [f for f in directory.iterdir() if f.is_file() and f.suffix in (".json", ".pkl")]


def _newest(directory: Path) -> Path | None:
    """The file of the trials that Tune would go on from."""
    return max(
        (f for f in _files(directory) if f.name.startswith("experiment_state-")),
        key=lambda f: f.name,
        default=None,
    )


def _is_whole(file: Path) -> bool:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    # Without a trial there is nothing to go on with.
    return (
        isinstance(state, dict)
        and bool(state.get("trial_data"))
        and all(other.stat().st_size for other in _files(file.parent))
    )


class _Refusal(logging.Handler):
    """Where Tune would log that it cannot go on, and begin anew, this ends the sweep."""

    def __init__(self, state: Path) -> None:
        super().__init__(logging.ERROR)
        self._state = state

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Failed to restore"):
            error = record.exc_info[1] if record.exc_info else None
            raise UserError(
                f"Ray Tune cannot read its state in {self._state} ({error}): use the version of "
                "Ray that wrote it, or delete that directory and its copy, and the trials begin "
                "anew with the runs that there are"
            )


@contextmanager
def quiet(directory: Path, trials: int) -> Iterator[None]:
    """Leave the terminal to our own lines; Tune reads some settings from the environment.

    Args:
        directory: of the sweep.
        trials: how many there will be.
    """
    often = str(SAVE_SECONDS) if trials <= MANY_TRIALS else "auto"
    environment = {**_ENVIRONMENT, "TUNE_GLOBAL_CHECKPOINT_S": often}
    before = {name: os.environ.get(name) for name in environment}
    logger = logging.getLogger("ray.tune")
    restoring = logging.getLogger("ray.tune.execution.tune_controller")
    levels, refusal = (logger.level, restoring.level), _Refusal(directory / STATE)
    os.environ.update(environment)
    in_main = threading.current_thread() is threading.main_thread()
    interrupts = signal.getsignal(INTERRUPTS) if in_main else None
    logger.setLevel(logging.CRITICAL)
    restoring.setLevel(logging.ERROR)
    restoring.addHandler(refusal)
    restoring.propagate = False
    try:
        yield
    finally:
        if interrupts is not None:
            signal.signal(INTERRUPTS, interrupts)
        restoring.propagate = True
        restoring.removeHandler(refusal)
        for one, level in zip((logger, restoring), levels, strict=True):
            one.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
