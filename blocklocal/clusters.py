"""Connecting to Ray: a cluster that is there, or a local one for this process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from blocklocal.config import RunConfig
from learning.errors import UserError


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured Ray cluster, or start a local one, unless connected already."""
    if config.engine.kind != "ray" or ray.is_initialized():
        yield
        return
    address = config.engine.address
    # Ray would send usage statistics home: a training run reports to nobody. Say 1 to allow it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address is None:
            # Messages up to here ride in the call: on one machine that costs less than half of the
            # CPU that shared memory does, with Ray's daemon in between (docs/transports.md).
            os.environ.setdefault("RAY_max_direct_call_object_size", str(8 * 2**20))
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",  # no need to be reached from elsewhere
            )
        else:
            _knock(address)
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UserError(
            f"cannot reach a Ray cluster at engine.address = {address!r} ({error}): start one or "
            "leave engine.address empty for a local one"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail within seconds where nobody answers: Ray would try for minutes and end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
