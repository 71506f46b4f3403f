"""Parquet files of encoded images: decoded once, in a stream, into the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learning.data.cache import CacheEntry, cache_directory
from learning.data.conversion import integers
from learning.data.files import atomic_file, checksum_of, existing_file
from learning.data.images import decode_image
from learning.data.memory import amount
from learning.data.splits import check_first_rows
from learning.data.words import listed, reason
from learning.doing import doing
from learning.errors import UserError, named, shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Read at a time: bounds the memory whatever the size of the file.
_ROWS = 256
_BYTES = 1 << 30


def read_parquet(
    path: Path,
    *,
    image: str,
    label: str,
    limit: int | None,
    cache: Path | None,
    setting: str = "data.limit",
) -> tuple[np.ndarray, np.ndarray]:
    """Read the first `limit` images and labels of a Parquet file, decoding them only once.

    Args:
        path: the file.
        image: the column of encoded images, bytes or a struct with a field `bytes`.
        label: the column of integer labels.
        limit: how many rows to read, None for all.
        cache: the folder of decoded images, None for the default one (`cache_directory`).
        setting: that says `limit`, for error messages.

    Returns:
        Images, uint8 (N, C, H, W) with C = 1 or 3, memory mapped; labels, int64 (N,).

    Raises:
        UserError: when the file is missing, damaged, empty or lacks a column, an image cannot be
            decoded or has another shape than the first, a value is missing, or the cache folder
            cannot be written.
    """
    path = existing_file(path, "a Parquet file")
    entry = CacheEntry.of(cache_directory(cache), path, (image, label), limit)
    found = entry.load()
    if found is None:
        doing(f"decoding the images of {named(path)}, once")
        _build(entry, path, image, label, limit, setting)
        found = entry.load()
    if found is None:
        raise UserError(
            f"the cache entry {named(entry.manifest)} cannot be read back after writing it: set "
            "data.cache or $BLOCKLOCAL_CACHE to a folder on a working disk"
        )
    return found


def _build(
    entry: CacheEntry, path: Path, image: str, label: str, limit: int | None, setting: str
) -> None:
    labels: list[np.ndarray] = []
    shape: tuple[int, ...] | None = None
    rows = 0
    with atomic_file(entry.images) as file:
        for total, batch in _record_batches(path, image, label, limit, setting):
            # One image at a time: a small file may hold very large ones.
            for row, pixels in enumerate(_decoded(path, batch.column(0), rows), start=rows):
                if shape is None:
                    shape = pixels.shape
                    _check_room(path, entry.directory, total, shape)
                    header = {"descr": "|u1", "fortran_order": False, "shape": (total, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                if pixels.shape != shape:
                    raise UserError(
                        f"the image in row {row} of {named(path)} has the shape {pixels.shape} "
                        f"(channels, height, width), but row 0 has {shape}: bring all images to "
                        "one size and color mode"
                    )
                # Appending, not a writable memory map: a full disk is an error, not a SIGBUS.
                file.write(pixels.tobytes())  # in C order, whatever the order of the decoder
            labels.append(_labels(path, batch.column(1), rows, label))
            rows += batch.num_rows
    with atomic_file(entry.labels) as file:
        np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
    if checksum_of(path) != entry.content:
        raise UserError(
            f"{named(path)} was changed while it was decoded: start again once it is whole"
        )
    entry.seal()


def _check_room(path: Path, directory: Path, rows: int, shape: tuple[int, ...]) -> None:
    needed, free = rows * int(np.prod(shape, dtype=object)), shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"{named(path)} decodes to {rows} images of the shape {shape}, {amount(needed)}, "
            f"but {amount(free)} are free in {named(directory)}: set data.cache to a folder "
            "with more room, or data.limit and data.test_limit"
        )


def _record_batches(
    path: Path, image: str, label: str, limit: int | None, setting: str
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (rows in all, next rows of the columns image and label), at most `limit` rows."""
    import pyarrow.parquet as pq

    try:
        # A buffer and no pre-buffering: pages are read as needed, not whole column chunks.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            _check_columns(path, file.schema_arrow, image, label)
            rows = file.metadata.num_rows
            total = left = rows if limit is None else min(rows, limit)
            if total < 1:
                raise UserError(f"{named(path)} has 0 rows: give a file with at least 1 row")
            if total < rows:
                labels = file.read([label]).column(0).combine_chunks()
                found = _labels(path, labels, 0, label)
                check_first_rows(found, limit, setting, named(path))
            size = _rows_at_once(file.metadata, total)
            for batch in file.iter_batches(size, columns=[image, label]):
                batch = batch.select([image, label]).slice(0, left)
                left -= batch.num_rows
                yield total, batch
                if left == 0:
                    return
    except UserError:
        raise
    except Exception as error:  # damaged files end in Arrow's errors and in many of Python's
        raise UserError(
            f"{named(path)} cannot be read as Parquet ({reason(error)}): fetch or write the file "
            "again"
        ) from error
    raise UserError(f"{named(path)} ends {left} rows early: fetch or write the file again")


def _rows_at_once(metadata: pq.FileMetaData, rows: int) -> int:
    """How many rows to read: a value is stored once, and may be that of every row."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    sizes = [g.column(k).total_uncompressed_size for g in groups for k in range(g.num_columns)]
    return max(1, min(_ROWS, rows, _BYTES // max(1, *sizes)))


def _check_columns(path: Path, schema: pa.Schema, image: str, label: str) -> None:
    import pyarrow as pa

    for role, name in (("image", image), ("label", label)):
        if (count := schema.names.count(name)) != 1:
            found = f"{count} columns" if count else "no column"
            raise UserError(
                f"{named(path)} has {found} {shown(name, 60)}, only {listed(schema.names)}: "
                f"set data.{role} to one of its columns"
            )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        raise UserError(
            f"column {shown(image, 60)} of {named(path)} has the type {kind}, not "
            "bytes or a struct with a field bytes: set data.image to a column of encoded images"
        )
    if not pa.types.is_integer(kind := schema.field(label).type):
        raise UserError(
            f"column {shown(label, 60)} of {named(path)} has the type {kind}, not an "
            "integer: set data.label to a column of integer labels"
        )


def _decoded(path: Path, column: pa.Array, first: int) -> Iterator[np.ndarray]:
    """Decode the rows from `first` on, each to uint8 (C, H, W)."""
    for row, value in enumerate(column, start=first):
        value = value.as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise UserError(
                f"the image in row {row} of {named(path)} has no bytes: drop that row or put the "
                "encoded image into it"
            )
        try:
            yield decode_image(data)
        except UserError as error:
            raise UserError(
                f"the image in row {row} of {named(path)} {error}: drop or re-encode that row"
            ) from error


def _labels(path: Path, column: pa.Array, first: int, name: str) -> np.ndarray:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(
            f"row {row} of {named(path)} has no value in column {shown(name, 60)}: drop or "
            "label that row"
        )
    labels = column.to_numpy(zero_copy_only=False)
    return integers(f"column {shown(name, 60)} of {named(path)}", labels, first)
