"""Encoded images and Parquet files of them, and PNG files byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from learning.data import read_parquet


def encode(pixels: np.ndarray | Image.Image, kind: str = "png", **fields: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **fields)
    return file.getvalue()


def pictures(count: int, *, color: bool = True, seed: int = 0) -> np.ndarray:
    """Random images, uint8 (N, H, W, 3) or (N, H, W)."""
    shape = (count, 4, 5, 3) if color else (count, 4, 5)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, images: Any, labels: Any, **names: str) -> Path:
    columns = {names.get("label", "label"): labels, names.get("image", "image"): images}
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


def read(path: Path, limit: int | None = None, **columns: str) -> tuple[np.ndarray, np.ndarray]:
    names = {"image": "image", "label": "label"} | columns
    return read_parquet(
        path, image=names["image"], label=names["label"], limit=limit, cache=path.parent / "cache"
    )


def raw_png(depth: int, kind: int, rows: list[bytes], width: int, clear: bytes = b"") -> bytes:
    """A PNG of unfiltered rows.

    Args:
        depth: bits of a value.
        kind: 0 grey, 2 color, 3 palette, 4 grey with alpha, 6 color with alpha.
        clear: content of a tRNS chunk: the value that is transparent.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    if clear:
        parts.insert(1, chunk(b"tRNS", clear))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
