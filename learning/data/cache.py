"""A folder of decoded images: plain `.npy` files, memory mapped on reading, checked by checksum.

An entry is three files: the images, the labels and, written last, a manifest with what they were
decoded from and the checksums of both. Every file is written under a temporary name and then moved
into place, so a reader never sees a half-written one; whatever does not match its manifest counts
as absent and is rebuilt. Files are opened without following links, and what is checked is what is
mapped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from learning.data.files import atomic_file, checksum, checksum_of, mapped, opened
from learning.data.words import reason
from learning.errors import UserError, shown

_log = logging.getLogger(__name__)
_FORMAT = 2  # raise it when the layout of the cached arrays or their meaning changes
_MANIFEST = 1 << 20  # bytes; a longer one was not written here


def cache_directory(chosen: Path | None) -> Path:
    """Say where decoded images are kept.

    The first of: `chosen`, $BLOCKLOCAL_CACHE, $XDG_CACHE_HOME/blocklocal, ~/.cache/blocklocal.

    Raises:
        UserError: when there can be no such folder.
    """
    own, xdg = os.environ.get("BLOCKLOCAL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen is not None or own:
            folder = Path(chosen or own or "").expanduser()
        else:
            folder = (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "blocklocal"
    except RuntimeError as error:
        raise UserError(
            f"the cache of decoded images has no home directory ({reason(error)}): set data.cache "
            "or $BLOCKLOCAL_CACHE to a folder"
        ) from error
    if "\0" in str(folder):
        raise UserError(f"data.cache = {shown(folder)} has a NUL: give the path of a folder")
    return folder


@dataclass(frozen=True)
class CacheEntry:
    """The decoded form of one file (its first rows, two of its columns).

    Attributes:
        directory: the folder of all entries.
        content: checksum of the bytes of the file.
        columns: of images and of labels.
        limit: how many rows were asked for, None for all.
    """

    directory: Path
    content: str
    columns: tuple[str, str]
    limit: int | None

    @classmethod
    def of(
        cls, directory: Path, source: Path, columns: tuple[str, str], limit: int | None
    ) -> CacheEntry:
        """Name the entry of what `source` holds now, whatever its name and times are.

        Raises:
            UserError: when the file cannot be read.
        """
        return cls(directory, checksum_of(source), columns, limit)

    @property
    def identity(self) -> dict[str, object]:
        """What is decoded, and how."""
        return {
            "format": _FORMAT,
            "content": self.content,
            "columns": list(self.columns),
            "limit": self.limit,
        }

    @property
    def key(self) -> str:
        """The beginning of the names of its files."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:32]

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
            with opened(self.manifest) as file:
                written = json.loads(file.read(_MANIFEST))
            with opened(self.images) as images, opened(self.labels) as labels:
                if written == self._sealed(images, labels):
                    x, y = mapped(images), np.array(mapped(labels))
                    kinds = (x.dtype, x.ndim, y.dtype, y.shape)
                    if kinds == (np.uint8, 4, np.int64, x.shape[:1]):
                        return x, y
            why = "it is not what its manifest says"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, not .npy
            why = reason(error)
        _log.warning("the cache entry %s is damaged (%s) and is rebuilt", self.manifest, why)
        return None

    def seal(self) -> None:
        """Write the manifest, once the images and labels are in place.

        Raises:
            UserError: when the folder cannot be written.
        """
        with (
            atomic_file(self.manifest) as file,
            opened(self.images) as images,
            opened(self.labels) as labels,
        ):
            file.write(json.dumps(self._sealed(images, labels)).encode())

    def _sealed(self, images: IO[bytes], labels: IO[bytes]) -> dict[str, object]:
        """The manifest that makes two open files an entry."""
        return self.identity | {"images": checksum(images), "labels": checksum(labels)}
