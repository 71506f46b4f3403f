"""Sources that fit in memory: `.npz` files and the digits that scikit-learn carries."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from learning.errors import UserError

# The test set must be the same in every run, so its seed is not the seed of the run.
_DIGITS_SEED = 20240229
_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_digits(test: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split the digits, with the same share of each class on both sides, always alike.

    Returns:
        x_train, y_train, x_test, y_test: x float32 (N, 1, 8, 8) in [0, 1], y int64 (N,).
    """
    # Imported here: it takes a second that processes without these data should not spend.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits(return_X_y=True)
    images, labels = np.asarray(digits[0]), np.asarray(digits[1])
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    rows = np.arange(len(x))
    train, held = train_test_split(rows, test_size=test, stratify=labels, random_state=_DIGITS_SEED)
    y = labels.astype(np.int64)
    return x[train], y[train], x[held], y[held]


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read x_train, y_train, x_test and y_test of an `.npz` file.

    Returns:
        x_train, y_train, x_test, y_test: x uint8 or float32, (N, D) or (N, C, H, W); y int64 (N,).

    Raises:
        UserError: when the file is missing or damaged, or an array is missing or has the wrong
            type, shape or length.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: give the path of an .npz file")
    found = _load(path)
    for key in _KEYS:
        if key not in found:
            raise UserError(
                f"{path} has no array {key!r}, only {', '.join(found) or 'none'}: save it with "
                f"{', '.join(_KEYS)}"
            )
    x_train, y_train, x_test, y_test = (found[key] for key in _KEYS)
    return (*check_arrays("train", x_train, y_train), *check_arrays("test", x_test, y_test))


def check_arrays(part: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring the rows and labels of `part` to the types that a `Split` holds.

    Raises:
        UserError: for a wrong type, shape or length.
    """
    if len(x) != len(y):
        raise UserError(
            f"x_{part} has {len(x)} rows but y_{part} has {len(y)}: give one label for each row"
        )
    return _images(f"x_{part}", x), _integers(f"y_{part}", y)


def held_rows(rows: int, validation: float) -> int:
    """Count the rows that the share `validation` of `rows` train rows holds out.

    Raises:
        UserError: when that leaves no train row, or no validation row although some are wanted.
    """
    held = round(rows * validation)
    if held == rows or (held == 0 and validation > 0):
        empty, change = ("train", "lower") if held == rows else ("validation", "raise")
        raise UserError(
            f"data.validation={validation} of {rows} train rows leaves 0 {empty} rows: "
            f"{change} data.validation, set it to 0, or use more rows"
        )
    return held


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array: save it with numpy.savez instead")
        with opened as arrays:
            # Only what is needed: other arrays may be large, or pickled and thus refused.
            return {key: arrays[key] if key in _KEYS else np.empty(0) for key in arrays.files}
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as .npz without pickle ({reason}): save it again with "
            "numpy.savez from arrays of numbers"
        ) from error


def _images(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim not in (2, 4) or 0 in x.shape[1:]:
        raise UserError(
            f"{name} has the shape {x.shape}, not (N, D) or (N, C, H, W): reshape it before saving"
        )
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise UserError(
            f"{name} has the type {x.dtype}, not uint8 or float: convert it before saving"
        )
    # A value beyond float32 becomes infinite here and is refused by the check for finite values.
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def _integers(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise UserError(
            f"{name} has the type {y.dtype} and shape {y.shape}, not integer and (N,): convert it "
            "before saving"
        )
    return y.astype(np.int64, copy=False)
