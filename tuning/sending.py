"""Opening a queue for an MLflow, and sending what an earlier process left in one."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from learning.errors import UserError, named, one_line, shown
from tuning.courier import BATCH_RECORDS, Courier
from tuning.spool import Record, Spool
from tuning.store import Store
from tuning.tracking import TrackingSettings, impatient, place, reason, redacted, refusing
from tuning.waiting_files import base_of


def open_courier(
    settings: TrackingSettings, default_directory: Path, queue: Path, start: Record
) -> Courier:
    """A courier for the runs of one queue, the first of which is that of `start`.

    Args:
        default_directory: holds mlflow.db and mlartifacts when no URI is set.
        start: record of the run that must be there, or be made, or nothing is sent.

    Raises:
        UserError: when the queue cannot be used.
    """
    uri = place(settings, default_directory)
    spool = Spool(queue)
    try:
        spool.about = {
            "uri": settings.uri,
            "experiment": settings.experiment,
            "directory": str(default_directory.absolute()),
            "first": start["run"],
        }
        spool.save()
        # In the queue as well: after what an earlier process left, which may be the run's end, and
        # for who sends the queue when MLflow was never reached.
        spool.append(start)
    except BaseException:
        spool.close()
        raise

    def reach() -> Store:
        with refusing(uri, start["known"]):
            store = Store(settings, default_directory, spool.names)
            store.start(start)
            spool.save()
        return store

    return Courier(spool, reach)


def send_waiting(queue: Path, uri: str | None = None) -> tuple[int, dict[str, str]]:
    """Send what waits in a queue.

    Args:
        uri: tracking URI instead of the one that it was written for.

    Returns:
        How many records were sent, and how MLflow calls the runs and models of the queue.

    Raises:
        UserError: when MLflow cannot be reached, does not have the run, or fails.
    """
    if not (queue / "sent.json").exists():
        return 0, {}
    spool = Spool(queue)
    try:
        count = spool.waiting
        if count:
            _send(spool, uri)
        return count, dict(spool.names)
    finally:
        spool.close()


def _send(spool: Spool, uri: str | None) -> None:
    about = {"uri": None, "experiment": None, "directory": None, "first": None, **spool.about}
    experiment = about["experiment"] or "blocklocal"
    try:
        settings = TrackingSettings(uri=uri or about["uri"], experiment=experiment)
    except ValidationError as error:
        why = error.errors()[0]
        raise UserError(
            f"MLflow's {why['loc'][0]} {shown(why['input'])}, of --uri or of "
            f"{named(spool.path / 'sent.json')}, is none ({one_line(why['msg'], 200)}): name the "
            "MLflow by --uri, or restore that file from a copy"
        ) from error
    directory = Path(about["directory"] or ".")
    first = spool.names.get(f"run {about['first']}")
    with refusing(place(settings, directory), first):
        store = Store(settings, directory, spool.names)
        if first is not None:
            store.check(first)

    def refuse(record: Record, why: str) -> None:
        spool.refuse(record, why)

    try:
        with impatient():
            while records := spool.read(BATCH_RECORDS):
                store.deliver(records, spool.sent, refuse, spool.append, base_of(spool.path))
    except UserError:
        raise
    except Exception as error:  # of MLflow, a database driver, requests or the system
        raise UserError(
            f"MLflow at {redacted(store.uri)} fails ({reason(error)}) and {spool.waiting} records "
            f"wait on in {spool.path}: try again later"
        ) from error
