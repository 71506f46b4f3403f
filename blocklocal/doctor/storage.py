"""Whether every node can write where checkpoints go, and sees what the others wrote there.

The driver writes them. It may come to run on any node, and goes on there with what it finds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from blocklocal.doctor.check import Check
from blocklocal.doctor.nodes import Probe, ask
from learning.errors import UserError
from orchestrator.storage import Storage, open_storage, reason

PROBE = b"written by blocklocal doctor"
OURS = "probe/driver"


def check_storage(location: str, probes: Sequence[Probe]) -> Iterator[Check]:
    """Write here and on every node, and read there what was written here.

    Args:
        location: an absolute path or a URI, as `checkpoints.storage`.

    Raises:
        UserError: for a location that is none.
    """
    name = f"doctor-{secrets.token_hex(8)}"
    storage = open_storage(location, name)
    fix = "let this process write there, or choose another checkpoints.storage"
    try:
        storage.write(OURS, [PROBE], len(PROBE))
    except OSError as error:
        yield Check("storage here", False, f"cannot write {storage.at()} ({reason(error)})", fix)
        return
    yield Check("storage here", True, f"wrote {storage.at()}")
    try:
        for answer in ask(probes, attempt, location, name):
            yield _judge(f"storage {answer.probe.node.address}", answer.failure or answer.value)
    finally:
        _clear(storage)


def _judge(name: str, wrong: str | None) -> Check:
    fix = (
        "give the node the same mount or credentials, or checkpoints.storage a URI that all "
        "nodes reach, such as s3://bucket/prefix"
    )
    if wrong is not None:
        return Check(name, False, wrong, fix)
    return Check(name, True, "writes, and reads what was written here")


def attempt(location: str, name: str) -> str | None:
    """Read the driver's file and write another; what went wrong, or None."""
    try:
        storage = open_storage(location, name)
    except UserError as error:
        return str(error)
    try:
        same = storage.read(OURS, len(PROBE)) == PROBE
    except FileNotFoundError:
        return f"{storage.at(OURS)} is not there: another disk than this process writes to"
    except OSError as error:
        return f"cannot read {storage.at(OURS)} ({reason(error)})"
    if not same:
        return f"{storage.at(OURS)} holds something else"
    mine = f"probe/{secrets.token_hex(8)}"
    try:
        storage.write(mine, [PROBE], len(PROBE))
        storage.delete(mine)
    except OSError as error:
        return f"cannot write {storage.at(mine)} ({reason(error)})"
    return None


def _clear(storage: Storage) -> None:
    for directory in storage.entries():
        if directory:
            storage.delete_directory(directory)
    storage.delete_directory("")
