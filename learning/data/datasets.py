"""A dataset: three disjoint splits of rows, and what a network sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learning.data.arrays import check_arrays, check_choices, count_classes, read_digits
from learning.data.conversion import check_spread
from learning.data.npz import read_npz
from learning.data.parquet import read_parquet
from learning.data.preprocessing import Preprocessing
from learning.data.settings import (
    ArraysSettings,
    DataSettings,
    DigitsSettings,
    ParquetSettings,
    ReversalSettings,
    TextSettings,
)
from learning.data.splits import Split, check_first_rows, hold_out
from learning.data.statistics import CHUNK, Numbers, measure
from learning.data.tokens import Rows, make_reversal, read_text
from learning.errors import UserError

_DIGITS_UNIT = 16.0  # the largest of their pixels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `validation` is empty when no row is held out.

    Attributes:
        name: what to call it in reports.
        train: the rows to learn from.
        validation: the rows to choose settings by.
        test: the rows to report on.
        preprocessing: what turns rows into what a network sees.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    preprocessing: Preprocessing

    @property
    def classes(self) -> int:
        """Labels are 0..classes-1."""
        return self.preprocessing.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row, (D,), (C, H, W), or (T,) for tokens."""
        return self.preprocessing.input_shape

    @property
    def tokens(self) -> bool:
        """Whether rows are tokens, numbers of words in a vocabulary, instead of measured values."""
        return self.preprocessing.tokens

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one row's labels: () for one label, (T,) for one a token."""
        return self.train.y.shape[1:]

    def split(self, name: str) -> Split:
        """Return the split called "train", "validation" or "test".

        Raises:
            UserError: for any other name.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise UserError(f"there is no split {name!r}: use one of {', '.join(splits)}")
        return splits[name]


def load_dataset(settings: DataSettings) -> Dataset:
    """Read, check and split a dataset; the same settings give the same rows everywhere.

    Raises:
        UserError: when a file is missing or damaged, or its rows cannot be trained on (see the
            readers and `arrays_dataset`).
    """
    match settings:
        case TextSettings():
            train, validation, test, letters = read_text(settings)
            return _tokens(settings.path.stem, train, validation, test, len(letters), letters)
        case ReversalSettings():
            return _tokens("reversal", *make_reversal(settings), None)
    return _split(
        *_read(settings),
        unit=_DIGITS_UNIT if isinstance(settings, DigitsSettings) else 1.0,
        validation=settings.validation,
        classes=settings.classes,
        normalize=settings.normalize,
    )


def arrays_dataset(
    x_train: object,
    y_train: object,
    x_test: object,
    y_test: object,
    *,
    validation: float = 0.1,
    classes: int | None = None,
    normalize: bool = True,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of arrays in memory, which are not copied where they need no cast.

    Arrays may be NumPy's, dense tensors of any device, nested lists, or of a library whose arrays
    NumPy reads, such as pandas.

    Args:
        x_train, x_test: both uint8, then scaled to [0, 1], or both float or bool, (N, D) or
            (N, C, H, W).
        y_train, y_test: integer labels from 0, or bool, (N,).
        validation: share of the train rows held out: as many of each class, the same in every
            run, however the rows are sorted.
        classes: how many there are; None counts them.
        normalize: subtract the mean and divide by the deviation of the train rows, each channel
            of images and each column of flat rows by its own.
        class_names: of the classes, in their order; kept with what is trained.
        name: what to call it in reports.

    Raises:
        UserError: when a split is empty, a label is out of range, a value is not finite, or a type
            or shape does not fit.
    """
    check_choices(validation, classes)
    return _split(
        name,
        *check_arrays(x_train, y_train, x_test, y_test),
        validation=validation,
        classes=classes,
        normalize=normalize,
        class_names=class_names,
    )


def _split(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    validation: float,
    classes: int | None,
    normalize: bool,
    class_names: Sequence[str] | None = None,
    unit: float = 1.0,
) -> Dataset:
    if x.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"train rows have the shape {x.shape[1:]} but test rows {x_test.shape[1:]}: give both "
            "the same shape"
        )
    for part, rows, labels in (("train", x, y), ("test", x_test, y_test)):
        if len(rows) == 0:
            raise UserError(f"the {part} data has 0 rows: give at least 1")
        _check_finite(part, rows)
        _check_labels(part, labels, classes)
    classes = classes or count_classes(y)
    _check_labels("test", y_test, classes)
    if class_names is not None and len(class_names) != classes:
        raise UserError(
            f"class_names has {len(class_names)} names for {classes} classes: give one for each"
        )

    train, held = hold_out(x, y, validation)
    unit = 255.0 if x.dtype == np.uint8 else unit
    if not normalize:
        check_spread(x)
    numbers = measure(train, unit) if normalize else Numbers((unit,))
    dataset = Dataset(
        name,
        train,
        held,
        Split(x_test, y_test),
        Preprocessing(
            rows=x.dtype.name,  # type: ignore[arg-type]
            input_shape=x.shape[1:],
            classes=classes,
            class_names=None if class_names is None else tuple(class_names),
            scale=numbers.scale,
            mean=numbers.mean,
            std=numbers.std,
        ),
    )
    for part in ("train", "validation", "test"):
        _check_seen(part, dataset.split(part), dataset.preprocessing)
    return dataset


def _tokens(
    name: str, train: Rows, validation: Rows, test: Rows, classes: int, vocabulary: str | None
) -> Dataset:
    shape = (train[0].shape[1],)
    preprocessing = Preprocessing(
        rows="tokens", input_shape=shape, classes=classes, vocabulary=vocabulary
    )
    return Dataset(name, Split(*train), Split(*validation), Split(*test), preprocessing)


def _read(
    settings: DigitsSettings | ArraysSettings | ParquetSettings,
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read name, x_train, y_train, x_test, y_test; limits applied."""
    match settings:
        case DigitsSettings():
            return ("digits", *read_digits(settings.test))
        case ArraysSettings(path=path, limit=n, test_limit=m):
            x, y, x_test, y_test = read_npz(path)
            check_first_rows(y, n, "data.limit", f"{path}, y_train")
            check_first_rows(y_test, m, "data.test_limit", f"{path}, y_test")
            return (path.stem, x[:n], y[:n], x_test[:m], y_test[:m])
        case ParquetSettings():
            parts = []
            for path, limit, setting in (
                (settings.train, settings.limit, "data.limit"),
                (settings.test, settings.test_limit, "data.test_limit"),
            ):
                parts += read_parquet(
                    path,
                    image=settings.image,
                    label=settings.label,
                    limit=limit,
                    cache=settings.cache,
                    setting=setting,
                )
            return (settings.train.stem, *parts)


def _check_finite(part: str, x: np.ndarray) -> None:
    if x.dtype == np.uint8:
        return
    bad = ~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    if bad.any():
        row = int(np.argmax(bad))
        value = x[row][~np.isfinite(x[row])][0]
        raise UserError(
            f"row {row} of the {part} data holds the value {value}: values must be finite "
            "numbers, so repair or drop that row"
        )


def _check_seen(part: str, split: Split, preprocessing: Preprocessing) -> None:
    """Refuse finite values that are none any more once they are normalised and float32."""
    if split.dtype == np.uint8:
        return
    first = 0
    for chunk in split.chunks(CHUNK):
        bad = ~np.isfinite(preprocessing.apply(chunk).numpy())
        if bad.any():
            row = first + int(np.argmax(bad.reshape(len(chunk), -1).any(axis=1)))
            row = row if split.rows is None else split.rows[row]
            data = "test" if part == "test" else "train"
            raise UserError(
                f"row {row} of the {data} data holds the value {chunk[bad][0]}, so far from the "
                "train rows that float32 cannot tell by how much: repair or drop that row"
            )
        first += len(chunk)


def _check_labels(part: str, y: np.ndarray, classes: int | None) -> None:
    bad = (y < 0) if classes is None else (y < 0) | (y >= classes)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    if y[row] < 0:
        raise UserError(
            f"label {y[row]} in row {row} of the {part} data is below 0: number the classes from 0"
        )
    assert classes is not None
    raise UserError(
        f"label {y[row]} in row {row} of the {part} data is above {classes - 1}, the largest of "
        f"{classes} classes: set data.classes to at least {y.max() + 1} or repair that row"
    )
