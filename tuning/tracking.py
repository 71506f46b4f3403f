"""Where runs are tracked: the settings, the tracking URI, and refusing what cannot be used."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from pydantic import Field

from learning.bounds import Address, Flag, SecondsFrom0, Text
from learning.errors import UserError
from learning.settings import Settings

KNOCK_SECONDS = 20.0  # for a server to answer

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingSettings(Settings):
    """Where a run is tracked."""

    enabled: Flag = True
    uri: Address | None = Field(
        default=None,
        description="MLflow tracking URI; default MLFLOW_TRACKING_URI, else a SQLite file",
    )
    experiment: Text = Field(default="blocklocal", min_length=1)
    run_name: Text | None = Field(default=None, description="default: a name MLflow makes up")
    patience: SecondsFrom0 = Field(
        default=20.0,
        description="seconds that the end of a run waits for an MLflow that fails or is slow",
    )


def place(settings: TrackingSettings, default_directory: Path) -> str:
    """The tracking URI in use: the setting, the environment's, or a SQLite file."""
    given = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    # Not more escapes: MLflow creates the parent directory by its escaped name.
    home = str(default_directory.absolute()).replace("%", "%25").replace("?", "%3F")
    return given or f"sqlite:///{home}/mlflow.db"


def check_place(settings: TrackingSettings, default_directory: Path) -> None:
    """Refuse what can be told without MLflow, whose import takes longer than a first step.

    Nothing is made: whoever asks may then be refused for something else.

    Raises:
        UserError: when a server does not answer or a SQLite file cannot be opened.
    """
    if not settings.enabled:
        return
    uri = place(settings, default_directory)
    with refusing(uri, None):
        if (file := sqlite_file(uri)) is not None:
            open_database(uri) if file.exists() else _check_may_make(file)
        if uri.startswith(("http://", "https://")) and not getproxies():
            server = urlsplit(uri)
            port = server.port or (443 if server.scheme == "https" else 80)
            socket.create_connection((server.hostname or "", port), KNOCK_SECONDS).close()


def open_database(uri: str) -> None:
    """Open a SQLite file, where it is one; MLflow would try for minutes, and this fails at once."""
    if (file := sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA schema_version")


def _check_may_make(file: Path) -> None:
    """Raise the OSError of making a file, and the directories that it would be in."""
    there = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
    failure = None
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        failure = error
    if failure is not None:  # of that file, not of the directory that was tried
        raise OSError(failure.errno, failure.strerror, str(file))


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLAlchemy address, read without SQLAlchemy."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    name = unquote(found.group(1)) if found else ""
    return Path(name) if name and name != ":memory:" else None


@contextmanager
def refusing(uri: str, run_id: str | None) -> Iterator[None]:
    """Turn failures into one sentence, and soon.

    Args:
        run_id: that is looked for at `uri`.

    Raises:
        UserError: for any of them.
    """
    try:
        with impatient():
            yield
    except Exception as error:  # of sqlite3, SQLAlchemy, a database driver, requests or MLflow
        where = f"where run {run_id} was started" if run_id else "sqlite:///<file> or a server"
        raise UserError(
            f"cannot track with MLflow at {redacted(uri)} ({reason(error)}): "
            f"set tracking.uri to {where}, or set tracking.enabled to false"
        ) from error


_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_limited: dict[str, int] = {}
_limiting = threading.Lock()


@contextmanager
def impatient() -> Iterator[None]:
    """Make MLflow give up on a dead server within a minute: by itself it asks for many.

    The environment is the only place where its client reads such limits. Those of the user stay.
    """
    with _limiting:
        for name in _LIMITS:
            if name not in os.environ or _limited.get(name):
                os.environ[name] = _LIMITS[name]
                _limited[name] = _limited.get(name, 0) + 1
        mine = [name for name in _LIMITS if _limited.get(name)]
    try:
        yield
    finally:
        with _limiting:
            for name in mine:
                _limited[name] -= 1
                if not _limited[name]:
                    os.environ.pop(name, None)


def reason(error: BaseException) -> str:
    """What went wrong, in one line without passwords."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    # What the system said, such as "connection refused", is the end of a long chain.
    said = root if isinstance(root, OSError) else error
    lines = str(said).strip().splitlines() or [type(said).__name__]
    return redacted(shorten(lines[0].rstrip("."), 240, placeholder=" ..."))


def redacted(text: str) -> str:
    """Hide passwords in addresses."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)
