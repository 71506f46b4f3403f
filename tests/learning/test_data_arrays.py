"""Arrays that callers give: each kind is taken as it is meant, or is one sentence with the fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from learning.data import AugmentSettings, Batches, Dataset, arrays_dataset
from learning.data.raw_rows import raw_rows
from learning.errors import UserError

ROWS = 20
Y = np.arange(ROWS) % 3
FLAT = np.random.default_rng(0).normal(size=(ROWS, 6))
IMAGES = np.random.default_rng(1).integers(0, 256, (ROWS, 2, 5, 7), dtype=np.uint8)


def dataset(x: Any = FLAT, y: Any = Y, **fields: Any) -> Dataset:
    return arrays_dataset(x, y, x, y, **fields)


def sentence(x: Any = FLAT, y: Any = Y, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        dataset(x, y, **fields)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(FLAT),
        torch.from_numpy(FLAT).float().requires_grad_(),
        torch.nn.Parameter(torch.from_numpy(FLAT)),
        torch.from_numpy(FLAT.T.copy()).T,
        list(torch.from_numpy(FLAT)),
        FLAT.tolist(),
        tuple(map(tuple, FLAT.tolist())),
        list(FLAT),
        pd.DataFrame(FLAT),
        FLAT.astype(">f8"),
        FLAT.astype(np.longdouble),
        np.asfortranarray(FLAT),
        FLAT[::-1, ::-1].copy()[::-1, ::-1],
        np.repeat(FLAT, 2, axis=1)[:, ::2],
        np.ma.masked_array(FLAT, mask=False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_rows_of_any_library_type_and_layout_are_the_same_rows(x):
    made = dataset(x)
    assert made.train.dtype in (np.float32, np.float64) and made.train.dtype.isnative
    batches = Batches(made, seed=3, batch=4, augment=AugmentSettings())
    expected = Batches(dataset(), seed=3, batch=4, augment=AugmentSettings())
    for one, other in zip(batches.batch(2), expected.batch(2), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert np.array_equal(made.test.x.astype(np.float32), FLAT.astype(np.float32))


@pytest.mark.parametrize(
    "y",
    [
        torch.from_numpy(Y),
        list(torch.from_numpy(Y)),
        Y.tolist(),
        pd.Series(Y, index=Y[::-1]),
        Y.astype(">i2"),
        Y.astype(np.uint64),
        Y[::-1].copy()[::-1],
        np.ma.masked_array(Y, mask=False),
    ],
    ids=lambda y: type(y).__name__,
)
def test_labels_of_any_library_and_type_are_the_same_labels(y):
    made = dataset(y=y)
    assert made.test.y.dtype == np.int64 and made.test.y.dtype.isnative
    assert made.test.y.tolist() == Y.tolist()


def test_images_of_any_layout_are_the_same_images():
    expected = dataset(IMAGES)
    for x in (
        torch.from_numpy(IMAGES),
        torch.from_numpy(IMAGES).to(memory_format=torch.channels_last),
        np.asfortranarray(IMAGES),
        IMAGES[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
    ):
        made = dataset(x)
        assert made.test.x.dtype == np.uint8 and np.array_equal(made.test.x, IMAGES)
        seen, known = made.preprocessing, expected.preprocessing
        np.testing.assert_allclose([seen.mean, seen.std], [known.mean, known.std], rtol=1e-12)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_floats_are_widened(kind):
    tensor = torch.from_numpy(FLAT).to(kind)
    assert np.array_equal(dataset(tensor).test.x, tensor.float().numpy())


def test_bools_are_zero_and_one():
    made = dataset(FLAT > 0, FLAT[:, 0] > 0)
    assert made.test.x.dtype == np.float32 and made.classes == 2
    assert np.array_equal(made.test.x, (FLAT > 0).astype(np.float32))
    assert np.array_equal(made.test.y, (FLAT[:, 0] > 0).astype(np.int64))


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_last_are_refused_with_the_fix(kind, channels):
    x = np.zeros((ROWS, 32, 28, channels), kind)
    said = sentence(x)
    assert f"x_train has the shape (20, 32, 28, {channels})" in said
    assert "use x.transpose(0, 3, 1, 2)" in said
    assert dataset(x.transpose(0, 3, 1, 2)).input_shape == (channels, 32, 28)
    assert dataset(x.swapaxes(2, 3)).input_shape == (32, channels, 28)


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 4, 3), (64, 1, 1), (64, 4, 4), (32, 1, 50)])
def test_channels_first_stay_what_they_are(shape):
    assert dataset(np.zeros((ROWS, *shape))).input_shape == shape


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((ROWS, 28, 28), np.uint8), "x[:, None] adds the channel of images"),
        (np.zeros(ROWS), "x[:, None] makes rows of one value"),
        (np.float64(3), "has the shape ()"),
        (np.zeros((ROWS, 6), np.int64), "use x.astype('uint8') for pixels"),
        (np.zeros((ROWS, 6), np.uint16), "has the type uint16, not uint8 or float"),
        (np.zeros((ROWS, 6), complex), "has the type complex128"),
        (torch.zeros(ROWS, 6, dtype=torch.cfloat), "has the type complex64"),
        (np.zeros((ROWS, 6), "datetime64[s]"), "has the type datetime64"),
        ([["a", "b"]] * ROWS, "has the type <U1"),
        ([[1.0, 2.0], [3.0]] * 10, "is no array of numbers"),
        ([[1.0, None]] * ROWS, "holds Python objects, not numbers: fill or drop missing"),
        ([[2**70, 1]] * ROWS, "holds Python objects"),
        ([*torch.zeros(3, 4), torch.zeros(5)], "is no array of numbers (stack expects"),
        (torch.zeros(ROWS, 6).to_sparse(), "is no array of numbers (it is a sparse"),
        (torch.zeros(ROWS, 6, device="meta"), "is no array of numbers"),
        (pd.DataFrame({"a": [1.0] * ROWS, "b": ["x"] * ROWS}), "holds Python objects"),
        ({"x": FLAT}, "is no array of numbers (it is a dict)"),
        (iter(FLAT), "give a NumPy array, a dense tensor or lists"),
        (None, "it is a NoneType"),
        ("x.npy", "it is a str"),
        (
            np.ma.masked_array(FLAT, mask=FLAT[4, 1] == FLAT),
            "hides values by its mask, first in row 4",
        ),
    ],
)
def test_rows_that_may_be_mistaken_are_refused(x, words):
    said = sentence(x)
    assert said.startswith("x_train") and words in said


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y[:, None], "use y[:, 0]"),
        (np.eye(3)[Y], "use y.argmax(1), where each row has a single 1"),
        (np.array(list("abc"))[Y], "use np.searchsorted(np.unique(y_train), y)"),
        (Y.astype(float), "has the type float64 and shape (20,), not integer"),
        (np.array(["cat"] * ROWS), "has the type <U3"),
        (np.array(3), "has the type int64 and shape ()"),
        (pd.Series(["cat"] * ROWS), "y_train"),
        (np.ma.masked_equal(Y, 2), "hides values by its mask, first in row 2"),
        (
            np.where(Y == 1, np.uint64(2**63), np.uint64(0)),
            "has the label 9223372036854775808 in row 1",
        ),
    ],
)
def test_labels_that_may_be_mistaken_are_refused(y, words):
    said = sentence(y=y)
    assert said.startswith("y_train") and words in said


@pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean"])
def test_missing_values_of_pandas_are_refused(kind):
    x = pd.DataFrame({"a": pd.array([1, None] * 10, kind)})
    assert "row 1" in sentence(x) or "holds Python objects" in sentence(x)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (FLAT + 1.7e9, "feature 0 of the train data varies from 16"),
        (FLAT * 1e-44, "keeps steps of 1.4e-45"),
        (np.where(np.arange(6) == 4, FLAT * 1e-60, FLAT), "feature 4 of the train data varies"),
        (FLAT[:, :, None, None] + 1e12, "channel 0 of the train data"),
    ],
)
def test_variation_that_float32_cannot_hold_is_refused_or_normalised(x, words):
    said = sentence(x, normalize=False)
    assert words in said and "set data.normalize to true" in said
    seen = Batches(dataset(x), seed=0, batch=18, augment=AugmentSettings()).batch(0)[0]
    assert seen.std(0).min() > 0.5


@pytest.mark.parametrize(
    "x",
    [
        FLAT * 1e-30,
        FLAT * 1e30,
        FLAT + 1e3,
        np.full((ROWS, 2), 0.1) + np.arange(ROWS)[:, None] * 1e-17,  # a constant and its rounding
        np.full((ROWS, 2), 1.7e9),
        np.zeros((ROWS, 2)),
        (FLAT[:3] * 1e-4 + 1e3)[[0, 1, 2] * 2],  # too few rows to tell
    ],
)
def test_variation_that_float32_can_hold_is_not(x):
    assert len(dataset(x, Y[: len(x)], validation=0, normalize=False).train) == len(x)


def test_values_beyond_float32_are_named_with_their_row():
    x = FLAT.copy()
    x[7, 2] = -1e39
    said = sentence(x, normalize=False)
    assert said.startswith("row 7 of the train data holds the value -1e+39, so far from")


@pytest.mark.parametrize("label", [999_999_999, 2**62, 2**20, 70_000])
def test_labels_that_are_no_numbers_of_classes_are_refused(label):
    y = np.where(Y == 2, label, Y)
    said = sentence(y=y)
    assert f"label {label} in row 2 of the train data makes {label + 1} classes of 20 rows" in said
    assert "number the classes from 0 without gaps" in said


def test_classes_without_a_row_are_possible():
    assert dataset(y=np.where(Y == 2, 999, Y)).classes == 1000
    assert dataset(y=np.where(Y == 2, 70_000, Y), classes=100_000).classes == 100_000


@pytest.mark.parametrize(
    "fields",
    [
        *({"classes": c} for c in (0, -1, 10**7 + 1, 2.0, True, "3", 10**400)),
        *({"validation": v} for v in (-0.1, 1, 2, float("nan"), float("inf"), "0.1", None)),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_choices_out_of_range_are_refused(fields):
    assert next(iter(fields)) + " = " in sentence(**fields)


@pytest.mark.parametrize(
    "x",
    [
        FLAT,
        torch.from_numpy(FLAT).requires_grad_(),
        list(torch.from_numpy(FLAT)),
        FLAT.tolist(),
        pd.DataFrame(FLAT),
        FLAT.astype(">f8"),
        np.ma.masked_array(FLAT, mask=False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_rows_to_predict_from_are_taken_as_rows_to_train_on(x):
    made = dataset(x)
    assert np.array_equal(raw_rows(x, made.preprocessing), made.test.x)


def test_rows_to_predict_from_may_be_bools_and_hide_nothing():
    made = dataset(FLAT > 0)
    assert np.array_equal(raw_rows(FLAT > 0, made.preprocessing), made.test.x)
    with pytest.raises(UserError, match="x hides values by its mask, first in row 4"):
        raw_rows(np.ma.masked_array(FLAT, mask=FLAT[4, 1] == FLAT), dataset().preprocessing)
