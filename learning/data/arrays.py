"""Sources that fit in memory: `.npz` files and the digits that scikit-learn carries."""

from __future__ import annotations

import math
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from learning.data.splits import stratified
from learning.errors import UserError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


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


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read x_train, y_train, x_test and y_test of an `.npz` file.

    Returns:
        x_train, y_train, x_test, y_test: x (N, D) or (N, C, H, W), both uint8, float32 or float64;
            y int64 (N,).

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
    return check_arrays(x_train, y_train, x_test, y_test)


def check_arrays(
    x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bring rows and labels to the types that a `Split` holds, both splits to the same.

    Raises:
        UserError: for a wrong type, shape or length, and for pixels beside numbers.
    """
    parts = {"train": (x_train, y_train), "test": (x_test, y_test)}
    for part, (x, y) in parts.items():
        if len(x) != len(y):
            raise UserError(
                f"x_{part} has {len(x)} rows but y_{part} has {len(y)}: give one label for each row"
            )
    rows = [_images(f"x_{part}", x) for part, (x, _) in parts.items()]
    labels = [_integers(f"y_{part}", y) for part, (_, y) in parts.items()]
    types = [x.dtype for x in rows]
    if types[0] != types[1]:
        if np.uint8 in types:
            raise UserError(
                f"x_train is {x_train.dtype} and x_test {x_test.dtype}, but uint8 is scaled to "
                "[0, 1] and float is not: give both the same type"
            )
        rows = [x.astype(np.float64) for x in rows]
    return rows[0], labels[0], rows[1], labels[1]


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
    # What is double stays so: in 1e9 plus something float32 would round the something away.
    return x.astype(np.float32 if x.dtype.itemsize <= 4 else np.float64, copy=False)


def _integers(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise UserError(
            f"{name} has the type {y.dtype} and shape {y.shape}, not integer and (N,): convert it "
            "before saving"
        )
    return y.astype(np.int64, copy=False)
