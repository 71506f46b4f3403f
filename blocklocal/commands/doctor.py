"""The command `blocklocal doctor`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.commands.terminal import configuration, say
from blocklocal.doctor.examination import examine
from blocklocal.doctor.network import MESSAGE_BYTES
from learning.errors import UserError


def doctor_command(
    *words: Annotated[str, Parameter(help="a YAML file, then settings: check for this run too")],
    address: Annotated[str | None, Parameter(help="of a Ray cluster; by default the run's")] = None,
    message: Annotated[int, Parameter(help="bytes to measure the network with")] = MESSAGE_BYTES,
) -> int:
    """Check this machine, or a cluster and whether a run would do there; exit code 1 if not."""
    if message < 1:
        raise UserError(f"--message = {message} is not possible: give 1 byte or more")
    config = configuration(words)
    where = {"kind": "ray", "address": address or config.engine.address}
    engine = config.engine.model_copy(update=where)
    config = config.model_copy(update={"engine": engine})
    failed = 0
    for check in examine(config, run=bool(words), message=message):
        say(f"{check.name}: {check}")
        failed += not check.ok
    say(f"{failed} checks failed" if failed else "everything is ok")
    return 1 if failed else 0
