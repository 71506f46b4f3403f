"""Hundreds of damaged files, seeded: each is read or refused in one sentence, never anything else.

A mutation that goes unnoticed is fine only where the format has no checksum there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from learning.data import ArraysSettings, TextSettings, decode_image, load_dataset, read_parquet
from learning.errors import UserError
from tests.learning.pictures import encode, pictures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def mutations(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flip bits, cut, repeat, drop and overwrite with what lengths and counts may be."""
    rng = np.random.default_rng(seed)
    words = [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0" * 64, b"PK\x03\x04"]
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(data) + 1))
            match int(rng.integers(6)):
                case 0 if place < len(data):
                    data[place] ^= 1 << int(rng.integers(8))
                case 1:
                    del data[place:]
                case 2:
                    del data[place : place + int(rng.integers(1, 40))]
                case 3:
                    data[place:place] = data[place : place + int(rng.integers(1, 40))]
                case 4:
                    word = words[int(rng.integers(len(words)))]
                    data[place : place + len(word)] = word
                case _:
                    data[place : place + 8] = rng.bytes(8)
        yield bytes(data)


def survive(read: Callable[[], object]) -> bool:
    """Whether it was read; refused is fine where the sentence is one."""
    try:
        read()
    except UserError as error:
        assert len(str(error)) < 500 and str(error).isprintable(), error
        return False
    return True


EXIF = Image.Exif()
EXIF[0x0112] = 6
COLOR = Image.fromarray(pictures(1)[0])
IMAGES = {
    "png": encode(COLOR, exif=EXIF, transparency=(1, 2, 3)),
    "palette": encode(COLOR.quantize(8), transparency=bytes(8)),
    "alpha": encode(COLOR.convert("RGBA"), exif=EXIF),
    "jpeg": encode(COLOR, "jpeg", exif=EXIF),
    "progressive": encode(COLOR.convert("CMYK"), "jpeg", progressive=True),
    "gif": encode(COLOR, "gif", save_all=True, append_images=[COLOR.rotate(90)]),
    "webp": encode(COLOR.convert("RGBA"), "webp", exif=EXIF),
    "bmp": encode(COLOR.convert("L"), "bmp"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_damaged_images(kind):
    assert survive(lambda: decode_image(IMAGES[kind]))
    read = 0
    for data in mutations(IMAGES[kind], 150, seed=sum(kind.encode())):

        def decode(data: bytes = data) -> None:
            pixels = decode_image(data)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and len(pixels) in (1, 3)

        read += survive(decode)
    assert read < 150


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path: Path, write: Callable[..., None]):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)).astype(np.float32), np.arange(12) % 3
    buffer = io.BytesIO()
    write(buffer, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    settings = ArraysSettings(path=tmp_path / "a.npz", validation=0)
    for data in mutations(buffer.getvalue(), 400, seed=1):
        settings.path.write_bytes(data)

        def load() -> None:
            made = load_dataset(settings)  # what is read is what was written: CRCs see the rest
            assert np.array_equal(made.train.x, x) and np.array_equal(made.train.y, y)
            assert np.array_equal(made.test.x, x[:5]) and np.array_equal(made.test.y, y[:5])

        survive(load)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_parquet(tmp_path: Path, compression: str):
    images = [{"bytes": encode(p), "path": "x"} for p in pictures(6)]
    buffer = io.BytesIO()
    table = pa.table({"image": images, "label": [0, 1, 2] * 2})
    pq.write_table(table, buffer, compression=compression, row_group_size=4)
    path = tmp_path / "a.parquet"
    for data in mutations(buffer.getvalue(), 150, seed=2):
        path.write_bytes(data)

        def load() -> None:
            x, y = read_parquet(path, image="image", label="label", limit=None, cache=tmp_path)
            assert x.dtype == np.uint8 and x.ndim == 4 and len(x) == len(y) > 0

        survive(load)
    assert not list(tmp_path.glob("*.tmp"))  # nothing half-written


def test_damaged_text(tmp_path: Path):
    settings = TextSettings(path=tmp_path / "a.txt", context=2, validation=0)
    whole = "\ufeffzwölf Boxkämpfer jagen 𝄞 quer\r\n".encode() * 3
    for data in mutations(whole, 300, seed=3):
        settings.path.write_bytes(data)
        survive(lambda: load_dataset(settings))
