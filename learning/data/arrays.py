"""Sources that fit in memory: `.npz` files and the digits that scikit-learn carries."""

from __future__ import annotations

import math
import zipfile
import zlib
from importlib.util import find_spec
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
    x = (table[:, :-1] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = table[:, -1].astype(np.int64)
    train, held = stratified(y, test, _DIGITS_SEED)
    return x[train], y[train], x[held], y[held]


def stratified(labels: np.ndarray, test: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random with the same share of each class on both sides.

    Draws what `train_test_split(stratify=labels, random_state=seed)` of scikit-learn draws, so
    that the rows are those it would choose.

    Args:
        labels: int64 (N,), from 0 and each class there.
        test: share of the rows in the second part, which is rounded up.
        seed: of the draws.

    Returns:
        Rows of the first and of the second part, int64, in random order.
    """
    draws = np.random.RandomState(seed)
    held = math.ceil(test * len(labels))
    counts = np.bincount(labels)
    kept_of_class = _shares(counts, len(labels) - held, draws)
    held_of_class = _shares(counts - kept_of_class, held, draws)
    first, second = [], []
    for label, (kept, other) in enumerate(zip(kept_of_class, held_of_class, strict=True)):
        rows = np.flatnonzero(labels == label)[draws.permutation(counts[label])]
        first.append(rows[:kept])
        second.append(rows[kept : kept + other])
    return draws.permutation(np.concatenate(first)), draws.permutation(np.concatenate(second))


def _shares(counts: np.ndarray, wanted: int, draws: np.random.RandomState) -> np.ndarray:
    """Divide `wanted` rows among classes by their sizes; ties for the last rows are drawn."""
    exact = counts / counts.sum() * wanted
    shares = np.floor(exact)
    left = int(wanted - shares.sum())
    rests = exact - shares
    for rest in np.sort(np.unique(rests))[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(rests == rest)
        add = min(len(tied), left)
        shares[draws.choice(tied, size=add, replace=False)] += 1
        left -= add
    return shares.astype(np.int64)


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
