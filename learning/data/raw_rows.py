"""Raw rows as users give them for a prediction, checked against what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from learning.data.conversion import as_array
from learning.data.preprocessing import Preprocessing
from learning.errors import UserError


def raw_rows(x: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Bring rows to the type that `Preprocessing.apply` takes.

    Args:
        x: an array, a tensor or lists, (n, *input_shape), of the type of the rows that the network
            was trained on; numbers in lists have no type. For a network of text also texts.
        preprocessing: of the network.

    Returns:
        uint8, float32, float64 or int64, (n, *input_shape); rows of text may be shorter.

    Raises:
        UserError: for another shape or type, or a value that cannot be.
    """
    letters = preprocessing.vocabulary
    if letters is not None and _is_text(x):
        x = [_tokens(text, letters) for text in ([x] if isinstance(x, str) else x)]
    rows = as_array("x", x)
    _check_shape(rows, preprocessing)
    if preprocessing.tokens:
        return _as_tokens(rows, preprocessing.classes)
    rows = _as_numbers(rows, preprocessing, typed=not isinstance(x, list | tuple))
    _check_finite(rows, rows, "values must be finite numbers")
    return rows


def seen(rows: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """What the network sees of rows of `raw_rows`.

    Raises:
        UserError: for a value that float32 does not reach.
    """
    x = preprocessing.apply(rows)
    if not preprocessing.tokens:
        why = "it is so far from the rows of training that float32 cannot tell by how much"
        _check_finite(x.numpy(), rows, why)
    return x


def _is_text(x: Any) -> bool:
    return isinstance(x, str) or (
        isinstance(x, Sequence) and len(x) > 0 and all(isinstance(text, str) for text in x)
    )


def _tokens(text: str, letters: str) -> list[int]:
    known = {letter: number for number, letter in enumerate(letters)}
    for position, letter in enumerate(text):
        if letter not in known:
            raise UserError(
                f"the character {letter!r} at position {position} is none of the {len(letters)} "
                "that the network was trained on: leave it out or replace it"
            )
    return [known[letter] for letter in text]


def _check_shape(rows: np.ndarray, preprocessing: Preprocessing) -> None:
    shape = preprocessing.input_shape
    fits = rows.shape[1:] == shape
    if preprocessing.vocabulary is not None and rows.ndim == 2:
        fits = 1 <= rows.shape[1] <= shape[0]
    if fits and len(rows) > 0:
        return
    wanted = f"(n, {', '.join(map(str, shape))})"
    fix = "give one row as x[None]" if rows.shape == shape else "give rows as they were in training"
    raise UserError(f"x has the shape {rows.shape} and the network takes {wanted}: {fix}")


def _as_tokens(rows: np.ndarray, classes: int) -> np.ndarray:
    if rows.dtype.kind not in "iu":
        raise UserError(
            f"x is {rows.dtype} and the network was trained on tokens: give integers from 0 to "
            f"{classes - 1}"
        )
    bad = (rows < 0) | (rows >= classes)
    if bad.any():
        raise UserError(
            f"x holds the token {rows[bad][0]}, and the network knows 0 to {classes - 1}: give "
            "tokens of its vocabulary"
        )
    return rows.astype(np.int64)


def _as_numbers(rows: np.ndarray, preprocessing: Preprocessing, *, typed: bool) -> np.ndarray:
    wanted, kind = preprocessing.rows, rows.dtype.kind
    if wanted == "uint8":
        whole = not typed and kind in "iu" and rows.min() >= 0 and rows.max() <= 255
        if whole or rows.dtype == np.uint8:
            return rows.astype(np.uint8, copy=False)
        raise UserError(
            f"x is {rows.dtype} and the network was trained on uint8 rows, 0 to 255: give them "
            "raw, in that type"
        )
    if kind in "fb" or (not typed and kind in "iu"):
        with np.errstate(over="ignore"):
            return rows.astype(wanted, copy=False)
    raise UserError(
        f"x is {rows.dtype} and the network was trained on {wanted} rows: give them raw, as float"
    )


def _check_finite(values: np.ndarray, rows: np.ndarray, why: str) -> None:
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values)
    row = int(np.argmax(bad.reshape(len(rows), -1).any(axis=1)))
    raise UserError(
        f"row {row} of x holds the value {rows[bad][0]}: {why}, so repair or drop that row"
    )
