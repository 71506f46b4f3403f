"""What a network sees does not depend on units, types or the order of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from learning.data import ArraysSettings, Dataset, Preprocessing, arrays_dataset, load_dataset
from learning.data.splits import check_first_rows
from learning.errors import UserError

ROWS = np.random.default_rng(3).normal(size=(48, 3))
LABELS = np.arange(48) % 4
EPS32, EPS64 = (float(np.finfo(kind).eps) for kind in (np.float32, np.float64))


def made(x: np.ndarray, **options: Any) -> Dataset:
    options = {"validation": 0} | options
    return arrays_dataset(x, LABELS, x[:8], LABELS[:8], **options)


def seen(x: np.ndarray, **options: Any) -> Tensor:
    """All rows as a network sees them."""
    return made(x, **options).preprocessing.apply(x)


@settings(max_examples=60, deadline=None)
@given(
    orders=st.lists(st.integers(-120, 120), min_size=3, max_size=3),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_units_that_are_powers_of_two_change_no_bit(orders: list[int], kind: type):
    x = ROWS.astype(kind)
    scaled = x * np.exp2(np.array(orders)).astype(kind)
    assert scaled.dtype == kind
    assert torch.equal(seen(scaled), seen(x))


@settings(max_examples=40, deadline=None)
@given(orders=st.lists(st.integers(-300, 300), min_size=3, max_size=3))
def test_any_unit_changes_what_is_seen_by_rounding_only(orders: list[int]):
    scaled = ROWS * 10.0 ** np.array(orders)
    torch.testing.assert_close(seen(scaled), seen(ROWS), rtol=2 * EPS32, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    orders=st.lists(st.integers(-10, 30), min_size=3, max_size=3),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_a_shift_is_seen_by_the_rounding_of_the_shifted_rows_only(orders: list[int], kind: type):
    shift = np.exp2(np.array(orders))
    if kind is np.float32:
        shift = np.minimum(shift, 2.0**12)  # beyond it these rows lose what one looks for
    shifted = (ROWS + shift).astype(kind)
    room = 8 * float(np.finfo(kind).eps) * (float(shift.max()) + 4) + 2 * EPS32
    torch.testing.assert_close(seen(shifted), seen(ROWS), rtol=room, atol=room)


@pytest.mark.parametrize("factor", [1e-300, 1e-40, 1e-9, 1.0, 1e38, 1e300])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_ends_of_the_types(factor: float, kind: type):
    if kind is np.float32 and not 1e-41 < factor < 1e39:
        return
    x = np.clip(ROWS, -3, 3).astype(np.float64)
    numbers = seen((x * factor).astype(kind))
    # In the subnormal numbers around 1e-40 there are 1e-45 / 1e-40 = 1e-5 between neighbours.
    room = 3e-5 if factor == 1e-40 and kind is np.float32 else 1e-6
    torch.testing.assert_close(numbers, seen(x), rtol=room, atol=room)
    assert numbers.mean().abs() < 0.1 and 0.8 < numbers.std() < 1.2


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-30, 1e30, 1.7e9])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_differs_by_rounding_only_is_constant_and_seen_as_nothing(value: float, kind: type):
    x = ROWS.astype(kind)
    x[:, 1] = value
    assert (seen(x)[:, 1] == 0).all()
    x[::2, 1] = np.nextafter(kind(value), kind(2 * value or 0))
    assert seen(x)[:, 1].abs().max() <= np.finfo(kind).eps
    later = x[:1].copy()
    later[0, 1] = 2 * value if value else 1
    # In units of its own size: as large as a value is, not as large as its unit makes it.
    assert 1 <= made(x).preprocessing.apply(later)[0, 1].abs() <= 2


def test_what_differs_by_more_than_rounding_is_not_constant():
    x = ROWS.astype(np.float32)
    x[:, 1] = 2.0**20 + (np.arange(48) % 8) / 4  # eight neighbours in float32
    x[:, 2] = 2.0**-140 * (np.arange(48) % 2)
    for column in (1, 2):
        found = seen(x)[:, column]
        assert found.std(correction=0) == pytest.approx(1, rel=1e-5)
        assert abs(float(found.mean())) < 1e-5


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_feature_of_a_few_neighbouring_numbers_keeps_what_it_says(kind: type):
    # Just below a power of two neighbours are half as far apart as just above it.
    step = np.spacing(kind(1e6))
    values = (kind(1e6) + step * np.rint(1.2 * ROWS).astype(kind)).astype(kind)
    assert (np.ptp(values, axis=0) > 4 * step).all()
    found = seen(values)
    assert found.std(dim=0, correction=0).numpy() == pytest.approx(1, rel=1e-5)
    # The mean of float32 rows is a number of float32 too: half a step of about one a deviation.
    assert found.mean(dim=0).abs().max() <= 0.5


def test_double_rows_are_not_rounded_to_float32_before_they_are_normalised():
    x = ROWS + 1.7e9  # seconds since 1970: in float32 they are 128 apart
    torch.testing.assert_close(seen(x), seen(ROWS), rtol=1e-5, atol=1e-5)
    assert made(x).preprocessing.rows == "float64"
    assert made(ROWS.astype(np.float16)).preprocessing.rows == "float32"


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 3), dtype=np.uint8)


@pytest.mark.parametrize("train", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("test", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("file", [False, True])
def test_rows_of_two_types(tmp_path, train: type, test: type, file: bool):
    rows = {"x_train": PIXELS.astype(train), "y_train": LABELS}
    rows |= {"x_test": PIXELS.astype(test), "y_test": LABELS}
    np.savez(tmp_path / "a.npz", **rows)

    def load() -> Dataset:
        if file:
            return load_dataset(ArraysSettings(path=tmp_path / "a.npz"))
        return arrays_dataset(**rows)

    if (train is np.uint8) != (test is np.uint8):
        with pytest.raises(UserError, match="x_train is .* and x_test .*uint8 is scaled.*same"):
            load()
        return
    dataset = load()
    assert dataset.train.dtype == dataset.validation.dtype == dataset.test.dtype
    numbers = dataset.preprocessing
    assert torch.equal(
        numbers.apply(dataset.validation.x), numbers.apply(dataset.test.x[dataset.validation.rows])
    )


@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled"])
def test_validation_has_each_class_as_often_however_rows_are_sorted(order: str):
    y = np.sort(np.repeat(np.arange(4), [100, 40, 50, 10]))
    y = {"sorted": y, "reversed": y[::-1], "shuffled": np.random.default_rng(0).permutation(y)}[
        order
    ]
    x = np.arange(400, dtype=np.float32).reshape(200, 2)
    dataset = arrays_dataset(x, y, x[:8], y[:8], validation=0.1)
    assert np.bincount(dataset.validation.y).tolist() == [10, 4, 5, 1]
    assert np.bincount(dataset.train.y).tolist() == [90, 36, 45, 9]
    both = np.concatenate([dataset.train.x, dataset.validation.x])
    assert sorted(both[:, 0].tolist()) == x[:, 0].tolist()
    assert dataset.train.stored is dataset.validation.stored  # an index each, no copy


def test_the_first_rows_of_a_sorted_file_are_refused(tmp_path):
    y = np.repeat(np.arange(10), 20)
    x = np.random.default_rng(0).normal(size=(200, 2))
    path = tmp_path / "sorted.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    for setting, array in (("limit", "y_train"), ("test_limit", "y_test")):
        with pytest.raises(UserError) as caught:
            load_dataset(ArraysSettings.model_validate({"path": path, setting: 60}))
        assert str(caught.value) == (
            f"data.{setting} = 60 takes the first rows of {path}, {array}: 20 of them have the "
            "label 0, and 6 would if they were like all 200 rows: shuffle the rows once, or leave "
            f"data.{setting} out"
        )
    assert len(load_dataset(ArraysSettings(path=path, limit=200, validation=0)).train) == 200


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 40), data=st.data())
def test_the_first_of_shuffled_rows_are_never_refused(seed: int, classes: int, data):
    rows = data.draw(st.integers(1, 400))
    y = np.random.default_rng(seed).integers(0, classes, rows)
    check_first_rows(y, data.draw(st.integers(1, rows)), "data.limit", "a file")


@pytest.mark.parametrize(("classes", "limit"), [(2, 20), (3, 13), (10, 7), (100, 50)])
def test_few_rows_of_one_class_are_enough_to_notice(classes: int, limit: int):
    y = np.repeat(np.arange(classes), 1000)
    with pytest.raises(UserError, match="label 0, and"):
        check_first_rows(y, limit, "data.limit", "a file")


def test_a_record_says_what_was_measured_with_the_same_bits():
    dataset = made(ROWS.astype(np.float32) * (1, 1e-30, 7), class_names=["a", "b", "c", "d"])
    read = Preprocessing.model_validate_json(dataset.preprocessing.model_dump_json())
    assert read == dataset.preprocessing and read.class_names == ("a", "b", "c", "d")
    assert torch.equal(read.apply(dataset.test.x), dataset.preprocessing.apply(dataset.test.x))
    assert read == dataset.preprocessing  # after both were used, too
    with pytest.raises(UserError, match="class_names has 2 names for 4 classes"):
        made(ROWS, class_names=["a", "b"])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"mean": (0.0, 1.0)},
        {"std": (0.0,)},
        {"scale": (-1.0,)},
        {"mean": (float("nan"),)},
        {"rows": "int8"},
        {"input_shape": (3, 2)},
        {"class_names": ("a",)},
    ],
)
def test_a_record_that_cannot_be_is_refused(change: dict[str, Any]):
    fields = made(ROWS).preprocessing.model_dump() | change
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(fields)
