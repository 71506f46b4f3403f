"""A dataset: three disjoint splits of rows, and the numbers that normalise them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learning.data.arrays import check_arrays, held_rows, read_digits, read_npz
from learning.data.parquet import read_parquet
from learning.data.settings import (
    ArraysSettings,
    DataSettings,
    DigitsSettings,
    ParquetSettings,
    ReversalSettings,
    TextSettings,
)
from learning.data.tokens import Rows, make_reversal, read_text
from learning.errors import UserError

_CHUNK = 1 << 20  # values worked on at a time: keeps memory mapped images out of memory


@dataclass(frozen=True, eq=False)
class Split:
    """Rows as they are stored: not scaled, not normalised, perhaps memory mapped (read-only).

    Attributes:
        x: uint8 or float32, (N, D) or (N, C, H, W); or tokens, int64 (N, T).
        y: int64 labels, (N,); or one label a token, (N, T).
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `validation` is empty when no row is held out.

    Attributes:
        name: what to call it in reports.
        train: the rows to learn from.
        validation: the rows to choose settings by.
        test: the rows to report on.
        classes: labels are 0..classes-1.
        input_shape: shape of one row, (D,), (C, H, W), or (T,) for tokens.
        mean: float32, (C,) for images and (1,) for flat rows; zeros when not normalising, which
            tokens never are.
        std: float32 and positive, of the shape of `mean`; ones when not normalising.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    input_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray

    @property
    def tokens(self) -> bool:
        """Whether rows are tokens, numbers of words in a vocabulary, instead of measured values."""
        return self.train.x.dtype == np.int64

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
            return _tokens(settings.path.stem, *read_text(settings))
        case ReversalSettings():
            return _tokens("reversal", *make_reversal(settings))
    return _split(
        *_read(settings),
        validation=settings.validation,
        classes=settings.classes,
        normalize=settings.normalize,
    )


def arrays_dataset(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    validation: float = 0.1,
    classes: int | None = None,
    normalize: bool = True,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of arrays in memory.

    Args:
        x_train, x_test: uint8 or float, (N, D) or (N, C, H, W).
        y_train, y_test: integer labels from 0, (N,).
        validation: share of the train rows, the last ones, held out.
        classes: how many there are; None counts them.
        normalize: subtract the mean and divide by the deviation of the train rows.
        name: what to call it in reports.

    Raises:
        UserError: when a split is empty, a label is out of range, a value is not finite, or a type
            or shape does not fit.
    """
    train, test = check_arrays("train", x_train, y_train), check_arrays("test", x_test, y_test)
    return _split(name, *train, *test, validation=validation, classes=classes, normalize=normalize)


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
    classes = classes or int(y.max()) + 1
    _check_labels("test", y_test, classes)

    kept = len(y) - held_rows(len(y), validation)
    train = Split(x[:kept], y[:kept])
    mean, std = _statistics(train.x)
    if not normalize:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    return Dataset(
        name=name,
        train=train,
        validation=Split(x[kept:], y[kept:]),
        test=Split(x_test, y_test),
        classes=classes,
        input_shape=tuple(x.shape[1:]),
        mean=mean,
        std=std,
    )


def _tokens(name: str, train: Rows, validation: Rows, test: Rows, classes: int) -> Dataset:
    splits = (Split(*train), Split(*validation), Split(*test))
    input_shape = (train[0].shape[1],)
    return Dataset(
        name, *splits, classes, input_shape, np.zeros(1, np.float32), np.ones(1, np.float32)
    )


def _read(
    settings: DigitsSettings | ArraysSettings | ParquetSettings,
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read name, x_train, y_train, x_test, y_test; limits applied."""
    match settings:
        case DigitsSettings():
            return ("digits", *read_digits(settings.test))
        case ArraysSettings():
            x, y, x_test, y_test = read_npz(settings.path)
            n, m = settings.limit, settings.test_limit
            return (settings.path.stem, x[:n], y[:n], x_test[:m], y_test[:m])
        case ParquetSettings(image=image, label=label, cache=cache):
            x, y = read_parquet(
                settings.train, image=image, label=label, limit=settings.limit, cache=cache
            )
            x_test, y_test = read_parquet(
                settings.test, image=image, label=label, limit=settings.test_limit, cache=cache
            )
            return (settings.train.stem, x, y, x_test, y_test)


def _check_finite(part: str, x: np.ndarray) -> None:
    if x.dtype == np.uint8:
        return
    bad = ~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    if bad.any():
        row = int(np.argmax(bad))
        value = x[row][~np.isfinite(x[row])][0]
        raise UserError(
            f"row {row} of the {part} data holds the value {value}: values must be finite float32 "
            "numbers, so repair or drop that row"
        )


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


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by channel (overall for flat rows) of x scaled as in training."""
    channels = x.shape[1] if x.ndim == 4 else 1
    count = x.size // channels
    step = max(1, _CHUNK * len(x) // x.size)
    # Two passes: the square of the mean may swamp the variance of float data.
    total = np.zeros((channels, 1))
    for start in range(0, len(x), step):
        chunk = x[start : start + step].reshape(-1, channels, x[0].size // channels)
        total += chunk.sum(axis=(0, 2), dtype=np.float64)[:, None]
    mean = total / count
    square = np.zeros(channels)
    for start in range(0, len(x), step):
        chunk = x[start : start + step].reshape(-1, channels, x[0].size // channels)
        deviation = chunk - mean
        square += np.einsum("ncp,ncp->c", deviation, deviation)
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    std = np.sqrt(square / count) / scale
    # A constant channel carries nothing: leave it at 0 instead of dividing by 0.
    std = np.where(std > 1e-7, std, 1.0)
    return (mean[:, 0] / scale).astype(np.float32), std.astype(np.float32)
