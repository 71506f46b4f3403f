"""Rows of a split, and which rows go where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from learning.errors import UserError

# Splits must be the same in every run, so their seed is not the seed of the run.
_SEED = 20240229
_CERTAINTY = np.log(1e6)  # one draw at random in a million is taken for none


@dataclass(frozen=True, eq=False)
class Split:
    """Rows as they are stored: not scaled, not normalised, perhaps memory mapped (read-only).

    Attributes:
        stored: uint8, float32 or float64, (N, D) or (N, C, H, W); or tokens, int64 (N, T).
        y: int64 labels, (n,); or one label a token, (n, T).
        rows: which stored rows are of this split, ascending, int64 (n,); None: all. An index, not
            a copy: splits share what is stored, which may be larger than the memory.
    """

    stored: np.ndarray
    y: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def dtype(self) -> np.dtype:
        """Type of the raw values."""
        return self.stored.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.stored.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of rows and labels."""
        return len(self) * self.stored[:1].nbytes + self.y.nbytes

    @property
    def x(self) -> np.ndarray:
        """All rows in memory, (n, ...)."""
        return self.take(slice(None))

    def take(self, index: slice | np.ndarray) -> np.ndarray:
        """Some of the rows: those that `index` picks from 0..n-1."""
        return self.stored[index if self.rows is None else self.rows[index]]

    def chunks(self, values: int) -> Iterator[np.ndarray]:
        """All rows, some at a time: about as many as hold `values` numbers."""
        step = max(1, values // max(1, int(np.prod(self.row_shape, dtype=int))))
        for start in range(0, len(self), step):
            yield self.take(slice(start, start + step))


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


def hold_out(x: np.ndarray, y: np.ndarray, validation: float) -> tuple[Split, Split]:
    """Split train rows into those to learn from and those held out, alike in every run.

    Both have the same share of each class, however the rows are sorted, and keep their order.

    Raises:
        UserError: when that leaves no train row, or no validation row although some are wanted.
    """
    held = held_rows(len(y), validation)
    if held == 0:
        return Split(x, y), Split(x[:0], y[:0])
    train, other = (np.sort(rows) for rows in stratified(y, held))
    return Split(x, y[train], train), Split(x, y[other], other)


def stratified(labels: np.ndarray, held: int, seed: int = _SEED) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random with the same share of each class on both sides.

    Draws what `train_test_split(stratify=labels, random_state=seed)` of scikit-learn draws, so
    that the rows are those it would choose.

    Args:
        labels: int64 (N,).
        held: rows of the second part.
        seed: of the draws.

    Returns:
        Rows of the first and of the second part, int64, in random order.
    """
    draws = np.random.RandomState(seed)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept_of_class = _shares(counts, len(labels) - held, draws)
    held_of_class = _shares(counts - kept_of_class, held, draws)
    first, second = [], []
    for index, (kept, other) in enumerate(zip(kept_of_class, held_of_class, strict=True)):
        rows = np.flatnonzero(classes == index)[draws.permutation(counts[index])]
        first.append(rows[:kept])
        second.append(rows[kept : kept + other])
    return draws.permutation(np.concatenate(first)), draws.permutation(np.concatenate(second))


def check_first_rows(labels: np.ndarray, limit: int | None, setting: str, where: object) -> None:
    """Check that the first rows are like all: those of a file that is sorted by class are not.

    A class may be there as often as in a draw at random, by Hoeffding's bound (1963, theorems 1
    and 4) on the draw of the first rows among all, and on that of the class among all.

    Args:
        labels: of all rows, integers (N,).
        limit: how many rows are to be used; None: all.
        setting: that says so.
        where: the rows are from.

    Raises:
        UserError: naming the class that is there too often or too rarely.
    """
    if limit is None or limit >= len(labels):
        return
    values, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found, rows = np.bincount(classes[:limit], minlength=len(values)), len(labels)
    surprise = np.maximum(
        limit * _divergence(found / limit, counts / rows),
        counts * _divergence(found / counts, np.full(len(values), limit / rows)),
    )
    worst = int(np.argmax(surprise))
    if surprise[worst] > _CERTAINTY:
        raise UserError(
            f"{setting} = {limit} takes the first rows of {where}: {found[worst]} of them have the "
            f"label {values[worst]}, and {limit * counts[worst] / rows:.0f} would if they were "
            f"like all {rows} rows: shuffle the rows once, or leave {setting} out"
        )


def _divergence(found: np.ndarray, fair: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of coins that fall with the shares `found` and `fair`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads, tails = found * np.log(found / fair), (1 - found) * np.log((1 - found) / (1 - fair))
    return np.nan_to_num(heads) + np.nan_to_num(tails)  # 0 log 0 is 0


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
