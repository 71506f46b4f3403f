"""Ray, imported so that a cluster of this machine alone can be kept to it.

Ray takes the loopback address for a node only where it believes that there are no clusters, as on
macOS; it reads that when it is imported, and again in the processes that it starts. Elsewhere
nothing changes but for `ray start`, so the variable stays only as long as it is needed.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
_NO_CLUSTERS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def without_clusters() -> Iterator[None]:
    """Let Ray, and what it starts meanwhile, listen on the loopback address.

    For nothing where somebody imported Ray before this module.
    """
    ours = {name: value for name, value in _NO_CLUSTERS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def keep_token_private() -> None:
    """Make the token of this user's clusters, for nobody else to read.

    Ray would make it for all to read. A file that is named by the user is left as it is.
    """
    given = any(os.environ.get(n) for n in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray/auth_token"
    if not os.path.lexists(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_token(path)
    found = path.lstat()
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
        path.chmod(0o600)  # an older Ray made it


def _make_token(path: Path) -> None:
    """Write a new token, whole or not at all, and never over another."""
    new = path.with_name(f".auth_token.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
    finally:
        os.close(descriptor)
    try:
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()


with without_clusters():
    import ray
    from ray.exceptions import AuthenticationError, RayError

__all__ = [
    "LOOPBACK",
    "AuthenticationError",
    "RayError",
    "keep_token_private",
    "ray",
    "without_clusters",
]
