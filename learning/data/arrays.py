"""Arrays in memory: the digits that scikit-learn carries, and checks of rows and labels."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from learning.bounds import MOST_CLASSES
from learning.data.conversion import integers, rows_of
from learning.data.splits import stratified
from learning.errors import UserError, shown

_SPARSE = 65_536  # classes up to which some may have no train row


def read_digits(test: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split the digits, with the same share of each class on both sides, always alike.

    Returns:
        x_train, y_train, x_test, y_test: x float32 (N, 1, 8, 8) from 0 to 16, y int64 (N,).

    Raises:
        UserError: when scikit-learn or its file of the digits is missing.
    """
    # The file alone: to import scikit-learn takes a second and would be all that it is used for.
    package = find_spec("sklearn")
    place = package.submodule_search_locations if package else None
    file = Path(place[0]) / "datasets" / "data" / "digits.csv.gz" if place else None
    if file is None or not file.is_file():
        raise UserError(
            "the digits come with scikit-learn, which is not complete here: install scikit-learn "
            "again or choose other data"
        )
    table = np.loadtxt(file, delimiter=",", dtype=np.float64)
    x = table[:, :-1].astype(np.float32).reshape(-1, 1, 8, 8)
    y = table[:, -1].astype(np.int64)
    train, held = stratified(y, math.ceil(test * len(y)))
    return x[train], y[train], x[held], y[held]


def check_arrays(
    x_train: object, y_train: object, x_test: object, y_test: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bring rows and labels to the types that a `Split` holds, both splits to the same.

    Raises:
        UserError: for a wrong type, shape or length, and for pixels beside numbers.
    """
    rows = [rows_of("x_train", x_train), rows_of("x_test", x_test)]
    labels = [integers("y_train", y_train), integers("y_test", y_test)]
    for part, x, y in zip(("train", "test"), rows, labels, strict=True):
        if len(x) != len(y):
            raise UserError(
                f"x_{part} has {len(x)} rows but y_{part} has {len(y)}: give one label for each row"
            )
    types = [x.dtype for x in rows]
    if types[0] != types[1]:
        if np.uint8 in types:
            raise UserError(
                f"x_train is {types[0]} and x_test {types[1]}, but uint8 is scaled to [0, 1] and "
                "float is not: give both the same type"
            )
        rows = [x.astype(np.float64, copy=False) for x in rows]
    return rows[0], labels[0], rows[1], labels[1]


def check_choices(validation: float, classes: int | None) -> None:
    """Check what settings would have checked, for data that are given in Python.

    Raises:
        UserError: for a share outside [0, 1) or a number of classes that cannot be.
    """
    number = isinstance(validation, int | float | np.number)
    if not number or not 0 <= validation < 1:
        raise UserError(
            f"validation = {shown(validation)} is not in 0 to below 1: give a share of the "
            "train rows"
        )
    whole = isinstance(classes, int | np.integer) and not isinstance(classes, bool)
    if classes is not None and not (whole and 1 <= classes <= MOST_CLASSES):
        raise UserError(
            f"classes = {shown(classes)} is not an integer from 1 to {MOST_CLASSES}: give how "
            "many there are, or None to count them"
        )


def count_classes(y: np.ndarray) -> int:
    """Count the classes of train labels: the largest plus 1.

    Args:
        y: int64 (N,), not empty, none below 0.

    Raises:
        UserError: when there would be more than can be, or so many more than rows that the labels
            are no numbers of classes.
    """
    classes = int(y.max()) + 1
    if classes > min(MOST_CLASSES, max(len(y), _SPARSE)):
        row = int(np.argmax(y))
        raise UserError(
            f"label {y[row]} in row {row} of the train data makes {classes} classes of {len(y)} "
            f"rows: number the classes from 0 without gaps, or set data.classes (at most "
            f"{MOST_CLASSES})"
        )
    return classes
