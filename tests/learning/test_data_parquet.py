"""Parquet files: what is read, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learning.data import ParquetSettings, load_dataset, parquet
from learning.errors import UserError
from tests.learning.pictures import encode, pictures, read, write


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


GOOD = encode(pictures(1)[0])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"no image", r"row 5 of .*a\.parquet cannot be decoded \(no known image format, "),
        (b"", "row 5 of .* cannot be decoded"),
        (GOOD[:60], "row 5 of .* cannot be decoded"),
        (GOOD[:40] + b"\xff" * 8 + GOOD[48:], "row 5 of .* cannot be decoded"),
        (None, "row 5 of .* has no bytes"),
        (encode(pictures(1)[0, :3]), r"row 5 .* shape \(3, 3, 5\) .* row 0 has \(3, 4, 5\)"),
        (encode(pictures(1, color=False)[0]), r"row 5 of .* has the shape \(1, 4, 5\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n", "no known image format, which"),
        (encode(np.zeros((4, 5), np.uint16)), "row 5 of .* has 16 bits a channel, which is not 8"),
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
        ([[GOOD]], [0], "column 'image' of .* has the type list"),
        ([{"bytes": {"x": 1}}], [0], "column 'image' of .* has the type struct"),
        ([GOOD], [[0]], "column 'label' of .* has the type list"),
        ([GOOD], [0.0], "column 'label' of .* has the type double"),
        ([None, GOOD], [0, 1], "the image in row 0 of .* has no bytes"),
        ([{"bytes": GOOD}, None], [0, 1], "the image in row 1 of .* has no bytes"),
        ([GOOD] * 3, pa.array([0, 2**63, 1], pa.uint64()), "label 9223372036854775808 in row 1"),
        ([GOOD, GOOD], [0, None], "row 1 of .* has no value in column 'label'"),
        (pa.array([], pa.binary()), pa.array([], pa.int64()), "has 0 rows"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(tmp_path, images, labels, words):
    path = write(tmp_path / "a.parquet", images, labels)
    with pytest.raises(UserError, match=words):
        read(path)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(GOOD))]
)
def test_all_types_of_bytes_are_read(tmp_path, kind):
    path = write(tmp_path / "a.parquet", pa.array([GOOD] * 3, kind), [0, 1, 2])
    assert np.array_equal(read(path)[0][2], pictures(1)[0].transpose(2, 0, 1))


def test_names_with_dots_are_columns_and_not_fields(tmp_path):
    images = [encode(p) for p in pictures(3)]
    path = write(tmp_path / "a.parquet", images, [0, 1, 2], image="a.b", label="c.d")
    assert read(path, image="a.b", label="c.d")[1].tolist() == [0, 1, 2]


def test_a_value_that_is_stored_once_for_many_rows_is_read_for_few(tmp_path, monkeypatch):
    kept = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([GOOD]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": kept, "label": [0, 1] * 20}), path, store_schema=False)
    seen: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counting(file: pq.ParquetFile, rows: int, **fields: Any) -> Any:
        seen.append(rows)
        return original(file, rows, **fields)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    monkeypatch.setattr(parquet, "_BYTES", 8 * len(GOOD))
    assert read(path)[0].shape == (40, 3, 4, 5)
    assert path.stat().st_size < 20 * len(GOOD)
    assert len(seen) == 1 and 1 <= seen[0] <= 8  # of rows that are all as large as what is stored


def test_a_name_of_two_columns_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([GOOD])] * 2, ["image", "image"]), path)
    with pytest.raises(UserError, match="has 2 columns 'image', only image, image: set data.ima"):
        read(path)


def test_sentences_stay_short_whatever_they_quote(tmp_path):
    path = tmp_path / "a.parquet"
    names = [f"{'long' * 50}\n{i}" for i in range(300)]
    pq.write_table(pa.table({name: [0] for name in names}), path)
    with pytest.raises(UserError) as caught:
        read(path, image="x" * 10_000)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
    assert "and 298 more" in str(caught.value)


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
