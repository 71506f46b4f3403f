"""The files that a queue's records name: none but those of the directory that the queue is in.

Whoever sends a queue may have it from someone else, and what is sent leaves this machine: a record
leads neither out of the directory nor through a link to any other file of the user's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePath

from learning.errors import named

QUEUE = "tracking"
"""The directory of the queue in that of a run or a sweep."""


def base_of(queue: Path) -> Path:
    """What a queue's files lie below: the directory of its run or sweep, or the queue by itself."""
    return queue.parent if queue.name == QUEUE else queue


class ForeignError(Exception):
    """A record names what is not a file, or not one of its directory."""


def waiting_file(base: Path, name: object) -> Path:
    """The file or directory of a record.

    Args:
        base: `base_of` the queue.
        name: relative to it.

    Raises:
        ForeignError: for one that is gone, lies elsewhere, or is or holds a link or a device.
    """
    if not isinstance(name, str) or "\0" in name:
        raise ForeignError("its path is no path")
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        raise ForeignError(f"{named(name)} does not lie below {named(base)}")
    path = base
    for part in parts:
        path = path / part
        _check(path)
    for directory, directories, files in os.walk(path, followlinks=False):
        for below in (*directories, *files):
            _check(Path(directory) / below)
    return path


def _check(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ForeignError(f"{named(path)} is gone") from error
    if stat.S_ISLNK(mode):
        raise ForeignError(f"{named(path)} is a symbolic link")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ForeignError(f"{named(path)} is no regular file")
