"""Whose checkpoints a storage holds: one run's, so that runs of the same name stay apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from learning.errors import UserError
from orchestrator.manifest import attempts
from orchestrator.record_files import MOST_BYTES
from orchestrator.storage import Storage, refusing

OWNER = "owner"


def claim(storage: Storage, run: str) -> None:
    """Make a storage this run's, or find that it is.

    Object stores do not lock: of two runs that claim at the same moment, the one that was written
    over finds out here, or when it claims again before it trains.

    Args:
        run: the run's identity, `RunState.id`.

    Raises:
        UserError: when it holds another run's checkpoints, or cannot be read or written.
    """
    where = storage.at()
    with refusing(
        f"claim {where} for this run",
        "mend that or choose another checkpoints.storage",
    ):
        holder = _holder(storage)
        if holder is None and not attempts(storage.entries()):
            with suppress(FileExistsError):  # another run's, just now
                text = f"{run}\n".encode()
                storage.write(OWNER, [text], len(text))
            holder = _holder(storage)
    if holder != run:
        raise UserError(
            f"{where} holds the checkpoints of another run ({holder or 'it has no owner file'}): "
            "choose another run.name or checkpoints.storage, or delete that run's checkpoints"
        )


@contextmanager
def claimed(storage: Storage | None, run: str | None) -> Iterator[None]:
    """Claim a storage, if any, for what is done under it; given back when that fails.

    Raises:
        UserError: see `claim`.
    """
    if storage is not None and run is not None:
        claim(storage, run)
    try:
        yield
    except BaseException:
        if storage is not None:
            with suppress(OSError):  # the failure that came first is the one to tell
                storage.delete(OWNER)
        raise


def _holder(storage: Storage) -> str | None:
    try:
        return storage.read(OWNER, MOST_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
