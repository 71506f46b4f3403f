"""Connecting to Ray: a cluster that is there, or a local one for this process.

Imports nothing that takes long but Ray: the command line starts a cluster while it imports the
rest (blocklocal/launch.py).
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blocklocal.confined import (
    LOOPBACK,
    AuthenticationError,
    RayError,
    keep_token_private,
    ray,
    without_clusters,
)
from blocklocal.monitors import giving_way
from learning.doing import doing
from learning.errors import UserError

if TYPE_CHECKING:
    from blocklocal.config import RunConfig

KNOCK_SECONDS = 5
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""Any that a head answers: it looks at the token first."""
FEW_CORES = 4
"""Up to here Ray's first workers, one a core, import what actors need before they are needed."""


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured Ray cluster, or start a local one, unless connected already."""
    if config.engine.kind != "ray" or ray.is_initialized():
        yield
        return
    address = config.engine.address
    if address is None:
        doing("starting Ray")
        with local_cluster():
            yield
        return
    _report_to_nobody()
    doing(f"connecting to the Ray cluster at {address}")
    try:
        _knock(address)
        with _own_signals():
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except _FAILURES as error:
        raise _refusal(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def local_cluster() -> Iterator[None]:
    """Start a cluster on this machine and stop it at the end.

    For the main thread: Linux ends Ray's processes with the thread that started them.

    Raises:
        UserError: when it does not start.
    """
    _report_to_nobody()
    # Messages up to here ride in the call: on one machine that costs less than half of the CPU
    # that shared memory does, with Ray's daemon in between (docs/transports.md).
    os.environ.setdefault("RAY_max_direct_call_object_size", str(8 * 2**20))
    if (os.cpu_count() or 1) <= FEW_CORES:
        os.environ.setdefault("RAY_preload_python_modules", "actors.preload")
    try:
        keep_token_private()
        with _own_signals(), without_clusters(), giving_way():
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                _node_ip_address=LOOPBACK,  # no need to be reached from elsewhere
            )
    except Exception as error:  # bare, where a node does not start in time
        said = " ".join(str(error).split())
        raise UserError(
            f"cannot start Ray on this machine ({said}): free memory and disk space, or train in "
            "this process with engine.kind = sequential"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of this process while Ray starts, and SIGHUP from what it starts.

    Ray puts two in the place of that of SIGTERM: one aborts a call to Ray, the other prints a stack
    of C++. The end of a terminal goes to all processes there: the actors are to outlive it until
    this process has their state.

    Raises:
        KeyboardInterrupt: at a SIGTERM meanwhile, or a SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    except SystemExit as error:  # Ray's handler
        if callable(before):
            before(signal.SIGTERM, None)
        raise KeyboardInterrupt from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


_FAILURES = (OSError, RuntimeError, ValueError, OverflowError, RayError)
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def _refusal(address: str, error: Exception) -> UserError:
    """One sentence on why a cluster could not be used."""
    said = " ".join(str(error).split())
    where = f"the Ray cluster at engine.address = {address!r}"
    versions = _VERSIONS.findall(said)
    if "ersion mismatch" in said and len(versions) == 2:
        (ray_there, python_there), (ray_here, python_here) = versions
        return UserError(
            f"{where} has Ray {ray_there} and Python {python_there}, and this process Ray "
            f"{ray_here} and Python {python_here}: install the same here and there"
        )
    copy = "copy ~/.ray/auth_token from a machine that may use it, or set RAY_AUTH_TOKEN"
    if isinstance(error, AuthenticationError):
        if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
            return UserError(
                f"{where} does not let this process in, which shows no token because "
                f"RAY_AUTH_MODE = {os.environ['RAY_AUTH_MODE']!r}: unset it, and {copy}"
            )
        source, token = _token()
        if not token:
            return UserError(f"{where} wants a token, and this process has none: {copy}")
        return UserError(f"{where} refuses the token of {source}: {copy}")
    if "Failed to connect to Ray cluster" in said:  # somebody answers there
        return UserError(f"{where} does not speak as Ray's head does: name the port of the head")
    return UserError(
        f"cannot reach a Ray cluster at engine.address = {address!r} ({said}): start one or "
        "leave engine.address empty for a local one"
    )


def _token() -> tuple[str, str]:
    """Where Ray finds the token of this process, and the token; empty where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    return str(path), path.read_text().strip() if path.exists() else ""


def _report_to_nobody() -> None:
    """Ray would send usage statistics home; say 1 to allow it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _knock(address: str) -> None:
    """Fail within seconds where nobody answers, or somebody who wants another token.

    Ray itself would try for long, and say why only in warnings.

    Raises:
        OSError: when nobody answers.
        AuthenticationError: when this process may not ask.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    import grpc

    _, token = _token()
    shown = token and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            channel.unary_unary(_QUESTION)(
                b"",
                timeout=KNOCK_SECONDS,
                metadata=(("authorization", f"Bearer {token}"),) if shown else (),
            )
        except grpc.RpcError as error:
            # Whoever does not know the question may still be what Ray can connect to.
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationError(error.details() or "") from error
