"""Parquet files: decoding, the cache of decoded images, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from learning.data import ParquetSettings, cache_directory, load_dataset, parquet, read_parquet
from learning.errors import UserError


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def pictures(count: int, *, color: bool = True, seed: int = 0) -> np.ndarray:
    """Random images, uint8 (N, H, W, 3) or (N, H, W)."""
    shape = (count, 4, 5, 3) if color else (count, 4, 5)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, images: list[Any], labels: Any, **names: str) -> Path:
    columns = {names.get("label", "label"): labels, names.get("image", "image"): images}
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """12 color images, labels 0, 1, 2, 0, ..."""
    return write(tmp_path / "a.parquet", [encode(p) for p in pictures(12)], np.arange(12) % 3)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every image decoded from now on."""
    seen: list[bytes] = []
    original = parquet.decode_image

    def counting(data: bytes) -> np.ndarray:
        seen.append(data)
        return original(data)

    monkeypatch.setattr(parquet, "decode_image", counting)
    return seen


def read(path: Path, limit: int | None = None, **columns: str) -> tuple[np.ndarray, np.ndarray]:
    names = {"image": "image", "label": "label"} | columns
    return read_parquet(
        path, image=names["image"], label=names["label"], limit=limit, cache=path.parent / "cache"
    )


def test_color_bytes(source):
    x, y = read(source)
    assert x.dtype == np.uint8 and y.dtype == np.int64
    assert np.array_equal(x, pictures(12).transpose(0, 3, 1, 2))
    assert y.tolist() == [0, 1, 2] * 4
    assert isinstance(x, np.memmap) and not x.flags.writeable


def test_grey_structs_other_names_and_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 5)
    grey = pictures(12, color=False)
    images = [{"bytes": encode(p), "path": None} for p in grey]
    labels = pa.array(range(12), pa.uint8())
    path = write(tmp_path / "a.parquet", images, labels, image="img", label="fine")
    x, y = read(path, image="img", label="fine")
    assert np.array_equal(x, grey[:, None]) and y.tolist() == list(range(12))


def test_limit_reads_only_the_first_rows(source, decoded):
    x, y = read(source, limit=7)
    assert len(x) == len(y) == len(decoded) == 7
    assert np.array_equal(x, read(source, limit=99)[0][:7])


def test_load_dataset(tmp_path, source):
    test = write(tmp_path / "t.parquet", [encode(p) for p in pictures(4, seed=1)], [0, 1, 2, 0])
    chosen = ParquetSettings(
        train=source, test=test, cache=tmp_path / "cache", limit=10, test_limit=3, validation=0.2
    )
    dataset = load_dataset(chosen)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (8, 2, 3)
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("a", 3, (3, 4, 5))
    rows = dataset.train.rows
    assert rows is not None and dataset.validation.rows is not None
    assert sorted([*rows, *dataset.validation.rows]) == list(range(10))
    kept, numbers = pictures(12)[rows], dataset.preprocessing
    np.testing.assert_allclose(numbers.mean, kept.mean((0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(numbers.std, kept.std((0, 1, 2)) / 255, rtol=1e-6)
    with pytest.raises(UserError, match="label 2 in row 2 of the train data is above 1"):
        load_dataset(chosen.model_copy(update={"classes": 2}))


def test_images_are_decoded_once(source, decoded):
    first = read(source)
    second = read(source)
    assert len(decoded) == 12
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    names = sorted(path.name[32:] for path in (source.parent / "cache").iterdir())
    assert names == ["-x.npy", "-y.npy", ".json"]


@pytest.mark.parametrize("ending", ["-x.npy", "-y.npy", ".json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
def test_a_damaged_entry_is_rebuilt(source, decoded, ending, damage):
    expected = np.array(read(source)[0])
    (path,) = (source.parent / "cache").glob(f"*{ending}")
    content = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(content[:-3])
    elif damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "empty":
        path.write_bytes(b"")
    x, y = read(source)
    assert len(decoded) == 24 and np.array_equal(x, expected) and y.tolist() == [0, 1, 2] * 4
    read(source)
    assert len(decoded) == 24


def test_a_changed_file_is_decoded_again(source, decoded):
    read(source)
    write(source, [encode(p) for p in pictures(12, seed=5)], np.arange(12) % 3)
    assert np.array_equal(read(source)[0], pictures(12, seed=5).transpose(0, 3, 1, 2))
    assert len(decoded) == 24
    os.utime(source, ns=(0, 12345))  # the size stays
    read(source)
    assert len(decoded) == 36


def test_an_open_entry_survives_a_rebuild(source):
    x, _ = read(source)
    expected = np.array(x)
    next((source.parent / "cache").glob("*.json")).unlink()
    read(source)
    assert np.array_equal(x, expected)


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("BLOCKLOCAL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory(None) == tmp_path / ".cache/blocklocal"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory(None) == Path("/xdg/blocklocal")
    monkeypatch.setenv("BLOCKLOCAL_CACHE", "/own")
    assert cache_directory(None) == Path("/own")
    assert cache_directory(Path("~/chosen")) == tmp_path / "chosen"


def test_a_cache_that_cannot_be_written_is_refused(source):
    (source.parent / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write the cache .* set data\.cache"):
        read(source)


GOOD = encode(pictures(1)[0])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"no image", r"row 5 of .*a\.parquet cannot be decoded \(no known image format\)"),
        (b"", "row 5 of .* cannot be decoded"),
        (GOOD[:60], "row 5 of .* cannot be decoded"),
        (GOOD[:40] + b"\xff" * 8 + GOOD[48:], "row 5 of .* cannot be decoded"),
        (None, "row 5 of .* has no bytes"),
        (encode(pictures(1)[0, :3]), r"row 5 .* shape \(3, 3, 5\) .* row 0 has \(3, 4, 5\)"),
        (encode(pictures(1, color=False)[0]), r"row 5 of .* has the shape \(1, 4, 5\)"),
        (encode(np.zeros((4, 5), np.uint16)), "row 5 of .* pixel mode I;16, which is not 8-bit"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, bad, words):
    path = write(tmp_path / "a.parquet", [GOOD] * 5 + [bad], [0] * 6)
    with pytest.raises(UserError, match=words):
        read(path)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (["text"], [0], "column 'image' of .* has the type string, not bytes or a struct"),
        ([{"path": "a.png"}], [0], "column 'image' of .* has the type struct"),
        ([GOOD], ["cat"], "column 'label' of .* has the type string, not an integer"),
        ([GOOD, GOOD], [0, None], "row 1 of .* has no value in column 'label'"),
        (pa.array([], pa.binary()), pa.array([], pa.int64()), "has 0 rows"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(tmp_path, images, labels, words):
    path = write(tmp_path / "a.parquet", images, labels)
    with pytest.raises(UserError, match=words):
        read(path)


def test_files_that_cannot_be_used_are_refused(source):
    with pytest.raises(UserError, match=r"no column 'img', only label, image: set data\.image"):
        read(source, image="img")
    with pytest.raises(UserError, match=r"no column 'fine', only label, image: set data\.label"):
        read(source, label="fine")
    with pytest.raises(UserError, match=r"no file .*b\.parquet"):
        read(source.with_name("b.parquet"))
    whole = source.read_bytes()
    for damaged in (b"", b"hello", whole[:-20], whole[:4] + b"\xff" * 400 + whole[404:]):
        source.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
            read(source)
