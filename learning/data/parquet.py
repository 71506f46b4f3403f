"""Parquet files of encoded images: decoded once, in a stream, into the cache."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learning.data.cache import CacheEntry, atomic_file, cache_directory
from learning.data.splits import check_first_rows
from learning.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256  # rows decoded at a time: bounds the memory whatever the size of the file
_GREY = ("1", "L", "LA")
_COLOR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


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
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: give the path of a Parquet file")
    entry = CacheEntry.of(cache_directory(cache), path, (image, label), limit)
    found = entry.load()
    if found is None:
        _build(entry, path, image, label, limit, setting)
        found = entry.load()
    if found is None:
        raise UserError(
            f"the cache entry {entry.manifest} cannot be read back after writing it: set "
            "data.cache or $BLOCKLOCAL_CACHE to a folder on a working disk"
        )
    return found


def decode_image(data: bytes) -> np.ndarray:
    """Decode one image to uint8 (C, H, W): grey images have 1 channel, all others 3 (RGB).

    Raises:
        UserError: when the bytes are no image, a damaged one, or one of more than 8 bits.
    """
    from PIL import Image  # here, as pyarrow below: every actor imports this module

    try:
        with Image.open(io.BytesIO(data)) as opened:
            mode = opened.mode
            if mode in _GREY:
                return np.asarray(opened.convert("L"))[None]
            if mode in _COLOR:
                return np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    except (
        OSError,
        SyntaxError,  # Pillow's word for a broken PNG chunk
        ValueError,
        IndexError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        # Pillow names the buffer's address, which says nothing to the user.
        reason = "no known image format" if "identify" in str(error) else str(error)
        raise UserError(f"cannot be decoded ({reason})") from error
    raise UserError(f"has the pixel mode {mode}, which is not 8-bit grey or color")


def _build(
    entry: CacheEntry, path: Path, image: str, label: str, limit: int | None, setting: str
) -> None:
    labels: list[np.ndarray] = []
    shape: tuple[int, ...] | None = None
    rows = 0
    with atomic_file(entry.images) as file:
        for total, batch in _record_batches(path, image, label, limit, setting):
            pixels, shape = _decode_batch(path, batch.column(0), rows, shape)
            if rows == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (total, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            # Appending instead of a writable memory map: a full disk is an error, not a SIGBUS.
            file.write(pixels.tobytes())  # in C order, whatever the order of the decoder
            labels.append(_labels(path, batch.column(1), rows, label))
            rows += len(pixels)
    with atomic_file(entry.labels) as file:
        np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
    entry.seal()


def _record_batches(
    path: Path, image: str, label: str, limit: int | None, setting: str
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (rows in all, next rows of the columns image and label), at most `limit` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffer and no pre-buffering: pages are read as needed, not whole column chunks.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            _check_columns(path, file.schema_arrow, image, label)
            rows = file.metadata.num_rows
            total = left = rows if limit is None else min(rows, limit)
            if total == 0:
                raise UserError(f"{path} has 0 rows: give a file with at least 1 row")
            if total < rows:
                labels = file.read([label]).column(0).combine_chunks()
                check_first_rows(_labels(path, labels, 0, label), limit, setting, path)
            for batch in file.iter_batches(min(_ROWS, total), columns=[image, label]):
                batch = batch.select([image, label]).slice(0, left)
                left -= batch.num_rows
                yield total, batch
                if left == 0:
                    return
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as Parquet ({reason}): fetch or write the file again"
        ) from error
    raise UserError(f"{path} ends {left} rows early: fetch or write the file again")


def _check_columns(path: Path, schema: pa.Schema, image: str, label: str) -> None:
    import pyarrow as pa

    for role, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise UserError(
                f"{path} has no column {name!r}, only {', '.join(schema.names) or 'none'}: "
                f"set data.{role} to one of its columns"
            )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"column {image!r} of {path} has the type {kind}, not bytes or a struct with a field "
            "bytes: set data.image to a column of encoded images"
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise UserError(
            f"column {label!r} of {path} has the type {schema.field(label).type}, not an integer: "
            "set data.label to a column of integer labels"
        )


def _decode_batch(
    path: Path, column: pa.Array, first: int, shape: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Decode the rows from `first` on to uint8 (n, C, H, W), each of `shape` if that is given."""
    images: list[np.ndarray] = []
    for row, value in enumerate(column.to_pylist(), start=first):
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise UserError(
                f"the image in row {row} of {path} has no bytes: drop that row or put the encoded "
                "image into it"
            )
        try:
            pixels = decode_image(data)
        except UserError as error:
            raise UserError(
                f"the image in row {row} of {path} {error}: drop or re-encode that row"
            ) from error
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise UserError(
                f"the image in row {row} of {path} has the shape {pixels.shape} (channels, "
                f"height, width), but row 0 has {shape}: bring all images to one size and color "
                "mode"
            )
        images.append(pixels)
    assert shape is not None  # pyarrow yields no empty batches
    return np.stack(images), shape


def _labels(path: Path, column: pa.Array, first: int, name: str) -> np.ndarray:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(
            f"row {row} of {path} has no value in column {name!r}: drop or label that row"
        )
    # An unsigned label beyond int64 wraps to a negative one, which the range check refuses.
    return column.to_numpy(zero_copy_only=False).astype(np.int64)
