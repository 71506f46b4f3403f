"""An object store in memory: no directories, no renames, and objects that appear when complete."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import suppress

import pyarrow as pa
from pyarrow import fs

from learning.errors import UserError
from orchestrator.arrow_storage import ArrowStorage


class Bucket(fs.FileSystemHandler):
    """Behaves as S3 does under pyarrow.

    Attributes:
        fail_at: the number of the first change, counted from 1, that fails.
        dead: whether all later ones fail too, so that everything stays as a crash leaves it.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.changes: list[str] = []
        self.fail_at, self.dead, self.error = 0, False, OSError(errno.EIO, "injected")

    def storage(self) -> ArrowStorage:
        return ArrowStorage(fs.PyFileSystem(self), "bucket/run", "s3://bucket/run")

    def change(self, what: str) -> None:
        self.changes.append(what)
        count = len(self.changes)
        if self.fail_at and (count == self.fail_at or (self.dead and count > self.fail_at)):
            raise self.error

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def get_type_name(self):
        return "bucket"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector):
        below = [p for p in self.objects if p.startswith(f"{selector.base_dir}/")]
        return [self._info(path) for path in sorted(below)]

    def open_input_stream(self, path):
        if path not in self.objects:
            raise FileNotFoundError(errno.ENOENT, f"Path does not exist '{path}'")
        return pa.PythonFile(io.BytesIO(self.objects[path]), mode="r")

    def open_input_file(self, path):
        return self.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        return pa.PythonFile(_Upload(self, path), mode="w")

    def delete_file(self, path):
        if path not in self.objects:
            raise FileNotFoundError(errno.ENOENT, f"Path does not exist '{path}'")
        self.change(f"delete {path}")
        del self.objects[path]

    def delete_dir(self, path):
        for name in [p for p in self.objects if p.startswith(f"{path}/")]:
            self.delete_file(name)

    def _info(self, path: str) -> fs.FileInfo:
        kind = fs.FileType.File if path in self.objects else fs.FileType.NotFound
        return fs.FileInfo(path, kind, size=len(self.objects.get(path, b"")))

    def _never(self, *_: object) -> None:
        raise AssertionError("object stores do not have this")

    create_dir = delete_dir_contents = delete_root_dir_contents = _never
    move = copy_file = open_append_stream = _never


class _Upload(io.BytesIO):
    def __init__(self, bucket: Bucket, path: str) -> None:
        super().__init__()
        self._bucket, self._path = bucket, path

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._bucket.change(f"put {self._path}")
            self._bucket.objects[self._path] = data


def with_faults(
    prepare: Callable[[ArrowStorage], object], act: Callable[[ArrowStorage], object]
) -> Iterator[tuple[Bucket, bool]]:
    """Yield (bucket, dead) for every way in which `act` can be interrupted, after it was."""
    for dead in (False, True):
        for at in range(1, 100):
            bucket = Bucket()
            prepare(bucket.storage())
            done = len(bucket.changes)
            bucket.fail_at, bucket.dead = done + at, dead
            with suppress(UserError):
                act(bucket.storage())
            interrupted = len(bucket.changes) >= bucket.fail_at
            bucket.fail_at = 0
            if not interrupted:
                assert at > 1, "nothing was injected"
                break
            yield bucket, dead
        else:
            raise AssertionError("the faults do not end")
