"""Datasets: which rows go where, what normalises them, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from learning.data import (
    ArraysSettings,
    Dataset,
    DataSettings,
    DigitsSettings,
    load_dataset,
    splits,
)
from learning.data import arrays as sources
from learning.errors import UserError


def arrays(**changes: Any) -> dict[str, Any]:
    """20 train and 6 test rows of 3 classes; the rows are told apart by their first value."""
    x = np.arange(26 * 2 * 3 * 3, dtype=np.float64).reshape(26, 2, 3, 3)
    y = np.arange(26) % 3
    base = {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:]}
    return base | changes


def load(folder: Path, content: dict[str, Any], **fields: Any) -> Dataset:
    path = folder / "some.npz"
    np.savez(path, **content)
    return load_dataset(ArraysSettings(path=path, **fields))


def test_settings_are_told_apart_by_kind():
    adapter: TypeAdapter[Any] = TypeAdapter(DataSettings)
    assert isinstance(adapter.validate_python({"kind": "digits"}), DigitsSettings)
    found = adapter.validate_python({"kind": "arrays", "path": "a.npz", "augment": {"crop": 2}})
    assert found.augment.crop == 2 and found.normalize and found.validation == 0.1
    for wrong in ({"kind": "digits", "limit": 3}, {"kind": "images"}, {"kind": "arrays"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("test", [0.01, 0.123, 0.2, 0.5, 0.9])
def test_digits_are_those_of_scikit_learn(test: float):
    images, labels = load_digits(return_X_y=True)
    x = images.astype(np.float32).reshape(-1, 1, 8, 8)
    rows = np.arange(len(x))
    train, held = train_test_split(rows, test_size=test, stratify=labels, random_state=splits._SEED)
    expected = x[train], labels[train].astype(np.int64), x[held], labels[held].astype(np.int64)
    for made, wanted in zip(sources.read_digits(test), expected, strict=True):
        assert (made.dtype, made.shape) == (wanted.dtype, wanted.shape)
        assert made.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_stratified_rows_are_those_of_scikit_learn(seed: int):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(5), np.arange(5), rng.integers(0, 5, 20 + 9 * seed)])
    test = float(rng.uniform(0.2, 0.8))
    rows, held = np.arange(len(labels)), math.ceil(test * len(labels))
    expected = train_test_split(rows, test_size=test, stratify=labels, random_state=seed)
    for made, wanted in zip(splits.stratified(labels, held, seed), expected, strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install scikit-learn"):
        sources.read_digits(0.2)


def test_digits():
    one, two = load_dataset(DigitsSettings()), load_dataset(DigitsSettings())
    assert (len(one.train), len(one.validation), len(one.test)) == (1293, 144, 360)
    assert (one.name, one.classes, one.input_shape) == ("digits", 10, (1, 8, 8))
    assert one.train.x.dtype == np.float32 and one.train.x.max() == 16
    assert one.preprocessing.scale == (16.0,)
    assert np.array_equal(one.test.x, two.test.x) and np.array_equal(one.train.y, two.train.y)
    assert np.bincount(one.test.y).min() >= 34
    other = load_dataset(DigitsSettings(validation=0.5))
    assert np.array_equal(one.test.x, other.test.x)


def test_splits_are_disjoint_and_the_same_in_every_run(tmp_path):
    content = arrays()
    dataset = load(tmp_path, content, validation=0.25, limit=16, test_limit=4)
    again = load(tmp_path, content, validation=0.25, limit=16, test_limit=4)
    rows = []
    for split, other in ((dataset.train, again.train), (dataset.validation, again.validation)):
        assert split.rows is not None and other.rows is not None
        assert np.array_equal(split.rows, other.rows)
        assert np.array_equal(split.x, content["x_train"][split.rows])
        assert np.array_equal(split.y, content["y_train"][split.rows])
        rows.append(split.rows.tolist())
    assert sorted(rows[0] + rows[1]) == list(range(16)) and len(rows[1]) == 4
    assert rows[0] == sorted(rows[0]) and rows[1] == sorted(rows[1])
    assert np.array_equal(dataset.test.x, content["x_test"][:4])
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("some", 3, (2, 3, 3))


def test_no_validation(tmp_path):
    dataset = load(tmp_path, arrays(), validation=0)
    assert len(dataset.train) == 20 and len(dataset.validation) == 0


def test_normalisation_is_of_the_train_split_only(tmp_path):
    content = arrays()
    content["x_train"][load(tmp_path, content).validation.rows] = 1e6
    content["x_test"][:] = -1e6
    dataset = load(tmp_path, content)
    seen = content["x_train"][dataset.train.rows]
    assert len(seen) == 18 and seen.max() < 1e6
    np.testing.assert_allclose(dataset.preprocessing.mean, seen.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.preprocessing.std, seen.std((0, 2, 3)), rtol=1e-12)
    plain = load(tmp_path, content, normalize=False)
    x = torch.from_numpy(content["x_train"][:2].astype(np.float32))
    assert torch.equal(plain.preprocessing.apply(content["x_train"][:2]), x)


def test_normalisation_in_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("learning.data.statistics.CHUNK", 50)
    x = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 3), dtype=np.uint8)
    x[:, 1] = 51
    dataset = load(tmp_path, arrays(x_train=x, x_test=x, y_test=np.arange(20) % 3), validation=0)
    expected = x[:, 0] / 255
    np.testing.assert_allclose(dataset.preprocessing.mean, [expected.mean(), 0.2], rtol=1e-12)
    # The second channel is constant: it must not be divided by zero.
    np.testing.assert_allclose(dataset.preprocessing.std, [expected.std(), 1.0], rtol=1e-12)


def test_flat_rows_are_normalised_column_by_column(tmp_path):
    x = np.random.default_rng(0).normal(5, 2, (20, 4)) * (1, 1e6, 1e-9, 1e3)
    dataset = load(tmp_path, arrays(x_train=x, x_test=x[:6]), validation=0)
    assert dataset.input_shape == (4,)
    np.testing.assert_allclose(dataset.preprocessing.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.preprocessing.std, x.std(0), rtol=1e-12)


def test_classes(tmp_path):
    assert load(tmp_path, arrays(), classes=7).classes == 7
    with pytest.raises(UserError, match="label 2 in row 2 of the train data is above 1.*least 3"):
        load(tmp_path, arrays(), classes=2)


def with_value(key: str, position: Any, value: float) -> dict[str, Any]:
    content = arrays()
    content[key] = content[key].copy()
    content[key][position] = value
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_value("y_train", 4, -2), "label -2 in row 4 of the train data is below 0"),
        (with_value("y_test", 4, 9), "label 9 in row 4 of the test data is above 2.*at least 10"),
        (with_value("x_train", (3, 0, 0, 0), np.nan), "row 3 of the train data holds .* nan"),
        (with_value("x_test", (5, 0, 0, 0), 1e300), r"row 5 of the test data holds .* 1e\+300"),
        (arrays(y_train=np.arange(19) % 3), "x_train has 20 rows but y_train has 19"),
        (arrays(x_test=np.zeros((0, 2, 3, 3)), y_test=np.arange(0)), "test data has 0 rows"),
        (arrays(x_test=np.zeros((6, 2, 3, 4))), r"\(2, 3, 3\) but test rows \(2, 3, 4\)"),
        (arrays(x_train=np.zeros((20, 3, 3))), r"x_train has the shape \(20, 3, 3\)"),
        (arrays(x_train=np.zeros((20, 0))), r"x_train has the shape \(20, 0\)"),
        (arrays(x_train=np.zeros((20, 4), np.int64)), "x_train has the type int64"),
        (arrays(y_train=np.zeros(20)), "y_train has the type float64"),
        (arrays(y_train=np.zeros((20, 1), np.int64)), r"y_train has the type int64 and shape"),
        (arrays(y_test=np.array([None] * 6)), "without pickle"),
        ({"x_train": np.zeros(3), "z": np.zeros(3)}, "no array 'y_train', only x_train, z:"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, content)


@pytest.mark.parametrize(("share", "empty"), [(0.01, "validation"), (0.99, "train")])
def test_splits_rounded_to_nothing_are_refused(tmp_path, share, empty):
    with pytest.raises(UserError, match=f"={share} of 20 train rows leaves 0 {empty} rows"):
        load(tmp_path, arrays(), validation=share)


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"no file .*a\.npz"):
        load_dataset(ArraysSettings(path=path))
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npz cannot be read as \.npz"):
            load_dataset(ArraysSettings(path=path))
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="holds a single array"):
        load_dataset(ArraysSettings(path=path))
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(60) + whole[260:])
    with pytest.raises(UserError, match=r"a\.npz cannot be read as \.npz"):
        load_dataset(ArraysSettings(path=path))
