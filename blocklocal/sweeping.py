"""`blocklocal tune`: check a sweep, run it or go on with it, and write what came of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from blocklocal.precision import cores
from blocklocal.preparation import available_cpus
from blocklocal.signals import handled
from blocklocal.sweep_checks import (
    Length,
    check_bundles,
    check_points,
    check_prepared,
    check_values,
)
from blocklocal.sweep_file import SweepFile
from blocklocal.sweep_outcome import write_outcome
from blocklocal.sweep_runs import TrialRuns
from blocklocal.sweep_tracked import track_best, tracking_of
from learning.errors import UserError
from learning.yaml_files import write_yaml
from orchestrator.borrowed import own_node
from orchestrator.files import write_file
from orchestrator.record_files import read_yaml_record, writing
from tuning.schedulers import check_scheduler
from tuning.searchers import Points, known_points
from tuning.sweep import RUNS, Sweep, run_sweep
from tuning.tracking import Status, check_place
from tuning.trial_tracking import Tracking

FILE = "sweep.yaml"
"""In a sweep's directory: the sweep, every setting resolved."""
Say = Callable[[str], None]


def start(path: Path, words: Sequence[str], say: Say, *, dry_run: bool = False) -> bool:
    """Run a new sweep.

    Returns:
        Whether it is over; False: it was interrupted.

    Raises:
        UserError: before anything is written, for anything that cannot be run.
    """
    file = SweepFile.read(path, words)
    points, length, corners = _checked(file)
    directory = _directory(file)
    base = make_config(file.base)
    check_place(base.tracking, directory.parent)
    if dry_run:
        say(write_yaml(file.dump()).rstrip())
        for number, values in list(points.items())[:10]:
            say(f"trial {number:04d}: {', '.join(f'{k}={v}' for k, v in values.items())}")
    with _connected(base):
        runs = _runs(file)
        check_bundles(runs, [*corners, *points.values()])
        if dry_run:
            return True
        _create(directory, file)
        with _locked(directory):
            try:
                tracking = _tracking(file, directory)
            except BaseException:
                shutil.rmtree(directory)  # it holds nothing yet
                raise
            sweep = _sweep(file, directory, points, length, runs)
            return _run(file, sweep, tracking, say, resume=False)


def go_on(directory: Path, say: Say) -> bool:
    """Go on with a sweep that was interrupted or killed.

    Returns:
        Whether it is over.

    Raises:
        UserError: when there is none, or another process works on it.
    """
    directory = Path(os.path.abspath(directory))
    if not (directory / FILE).is_file():
        raise UserError(f"{directory} is no sweep (no {FILE}): name the directory of one")
    file = SweepFile.of(read_yaml_record(directory / FILE))
    points, length, corners = _checked(file)
    with _locked(directory), _connected(make_config(file.base)):
        runs = _runs(file)
        check_bundles(runs, [*corners, *points.values()])
        say(f"going on with {directory}")
        tracking = _tracking(file, directory)
        sweep = _sweep(file, directory, points, length, runs)
        return _run(file, sweep, tracking, say, resume=True)


def _connected(base: RunConfig) -> AbstractContextManager[None]:
    """A cluster for the trials, also where each of them is one process."""
    engine = base.engine.model_copy(update={"kind": "ray"})
    return cluster(base.model_copy(update={"engine": engine}))


def _checked(file: SweepFile) -> tuple[Points, Length, list[dict[str, Any]]]:
    """All checks that need no cluster."""
    points = known_points(file.settings, file.space)
    checked = check_values(file)
    check_points(file, points.values())
    length = check_prepared(checked, file.settings.metric)
    check_scheduler(file.settings, file.space, length.steps, length.every)
    return points, length, [values for values, _ in checked]


def _runs(file: SweepFile) -> TrialRuns:
    """How trials are run on the cluster that is connected."""
    parallel = file.settings.parallel or 1
    share = available_cpus() / parallel, max(1, cores() // parallel)
    return TrialRuns(file.base, *share, own_node(), frozenset(file.space.keys))


def _tracking(file: SweepFile, directory: Path) -> Tracking | None:
    return tracking_of(make_config(file.base), directory, file.settings, file.space)


def _sweep(
    file: SweepFile, directory: Path, points: Points, length: Length, runs: TrialRuns
) -> Sweep:
    return Sweep(
        file.settings,
        file.space,
        directory,
        length.steps,
        length.every,
        points,
        runs,
        runs.bundles,
    )


def _run(
    file: SweepFile, sweep: Sweep, tracking: Tracking | None, say: Say, *, resume: bool
) -> bool:
    began = time.monotonic()
    status: Status = "FAILED"
    files: tuple[Path, ...] = ()
    try:
        with handled() as stopping:
            stopping.patience = make_config(file.base).engine.patience
            stopping.notice = "ending the trials"
            stopping.left = f"; go on with blocklocal tune --resume {quote(str(sweep.directory))}"
            over = run_sweep(sweep, say, tracking, resume=resume, stopping=stopping)
        say(f"{time.monotonic() - began:.0f} s")
        if over:
            best, files = write_outcome(sweep.directory, file, say)
            if tracking is not None:
                track_best(tracking, best, file.base["run"]["name"])
        status = "FINISHED" if over else "KILLED"
    finally:
        if tracking is not None:
            tracking.end(status, files)
    return over


def _directory(file: SweepFile) -> Path:
    """Where a new sweep is kept.

    Raises:
        UserError: when it is taken.
    """
    given = file.settings.directory
    if given is None:
        name = file.base["run"]["name"]
        first = Path("sweeps") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        given, number = first, 1
        while given.exists():
            number += 1
            given = first.with_name(f"{first.name}-{number}")
    path = Path(os.path.abspath(given.expanduser()))
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
        raise UserError(
            f"sweep.directory = {path} exists and is not an empty directory: choose another or go "
            "on with blocklocal tune --resume"
        )
    return path


def _create(directory: Path, file: SweepFile) -> None:
    """Make the directory of a new sweep, all of it or nothing.

    Raises:
        UserError: when it cannot be written.
    """
    new = directory.parent / f".{directory.name}.new-{os.getpid()}"
    text = write_yaml(file.dump())
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        (new / RUNS).mkdir(parents=True)
        write_file(new / FILE, [text.encode()])
        os.rename(new, directory)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(
            f"cannot create sweep.directory = {directory} ({error.strerror}): choose another"
        ) from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from working on a sweep.

    Raises:
        UserError: when one does.
    """
    with writing(directory, "lock sweep"):
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another blocklocal tune works on {directory}: wait until it ends or stop it"
        ) from error
    finally:
        os.close(descriptor)
