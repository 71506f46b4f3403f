"""A folder of decoded images: plain `.npy` files, memory mapped on reading, checked by CRC.

An entry is three files: the images, the labels and, written last, a manifest with the CRC of both.
Every file is written under a temporary name and then moved into place, so a reader never sees a
half-written one; whatever does not match its manifest counts as absent and is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from learning.errors import UserError

_log = logging.getLogger(__name__)
_FORMAT = 1  # raise it when the layout of the cached arrays changes


def cache_directory(chosen: Path | None) -> Path:
    """Say where decoded images are kept.

    The first of: `chosen`, $BLOCKLOCAL_CACHE, $XDG_CACHE_HOME/blocklocal, ~/.cache/blocklocal.
    """
    if chosen is not None:
        return chosen.expanduser()
    if own := os.environ.get("BLOCKLOCAL_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "blocklocal"
    return Path.home() / ".cache" / "blocklocal"


@dataclass(frozen=True)
class CacheEntry:
    """The decoded form of one file (its first rows, two of its columns)."""

    directory: Path
    key: str

    @classmethod
    def of(
        cls, directory: Path, source: Path, columns: tuple[str, str], limit: int | None
    ) -> CacheEntry:
        """Name the entry of `source` as it is now: a changed file gets another entry."""
        status = source.stat()
        identity = [_FORMAT, str(source.resolve()), status.st_size, status.st_mtime_ns]
        text = json.dumps([*identity, *columns, limit])
        return cls(directory, hashlib.sha256(text.encode()).hexdigest()[:32])

    @property
    def images(self) -> Path:
        """The `.npy` of the images, uint8 (N, C, H, W)."""
        return self.directory / f"{self.key}-x.npy"

    @property
    def labels(self) -> Path:
        """The `.npy` of the labels, int64 (N,)."""
        return self.directory / f"{self.key}-y.npy"

    @property
    def manifest(self) -> Path:
        """The JSON file that makes the entry whole."""
        return self.directory / f"{self.key}.json"

    def load(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Open the entry, or return None when it is absent or damaged.

        Returns:
            Images, uint8 (N, C, H, W), memory mapped and read-only; labels, int64 (N,).
        """
        try:
            expected = json.loads(self.manifest.read_bytes())
            actual = {"images": _crc(self.images), "labels": _crc(self.labels)}
            if actual == expected:
                x = np.load(self.images, mmap_mode="r", allow_pickle=False)
                return x, np.load(self.labels, allow_pickle=False)
            reason = "its checksum does not match"
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: the manifest is not JSON
            reason = str(error)
        _log.warning("the cache entry %s is damaged (%s) and is rebuilt", self.manifest, reason)
        return None

    def seal(self) -> None:
        """Write the manifest, once the images and labels are in place.

        Raises:
            UserError: when the folder cannot be written.
        """
        with atomic_file(self.manifest) as file:
            text = json.dumps({"images": _crc(self.images), "labels": _crc(self.labels)})
            file.write(text.encode())


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` if the body succeeds.

    Raises:
        UserError: when the folder cannot be made or written (no permission, disk full).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files no other user may read: a team may share the folder.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the cache of decoded images in {path.parent} "
            f"({error.strerror or error}): set data.cache or $BLOCKLOCAL_CACHE to a folder that "
            "is writable and has room"
        ) from error


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
