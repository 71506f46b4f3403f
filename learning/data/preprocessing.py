"""From raw rows to what a network sees: part of what is trained, so it is kept with the weights.

A row x, as the data hold it, becomes `((x / scale) - mean) / std`, feature by feature: one number a
channel of images (C, H, W), one a column of flat rows (D,). Tokens stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from pydantic import FiniteFloat, PositiveInt, model_validator
from torch import Tensor

from learning.settings import Settings


@dataclass(frozen=True, eq=False)
class Arrays:
    """The numbers of a `Preprocessing` as arrays; each its own, so that records can be compared."""

    scale: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Preprocessing(Settings):
    """What turns raw rows into what a network was trained on, with the same bits.

    Attributes:
        version: of this record.
        rows: type of the raw rows. `float64` is normalised in that type, all else in float32, and
            the network sees float32.
        input_shape: of one row, (D,) or (C, H, W); (T,) for tokens.
        classes: labels, and tokens of a text, are 0..classes-1.
        class_names: of the classes, where the data have names.
        vocabulary: the character of each token, where the data are a text.
        scale: one number, or one a feature: 255 for uint8; else a power of two.
        mean: one number, or one a feature, of rows that are scaled.
        std: as `mean`, and positive.
    """

    version: Literal[1] = 1
    rows: Literal["uint8", "float32", "float64", "tokens"]
    input_shape: tuple[PositiveInt, ...]
    classes: PositiveInt
    class_names: tuple[str, ...] | None = None
    vocabulary: str | None = None
    scale: tuple[FiniteFloat, ...] = (1.0,)
    mean: tuple[FiniteFloat, ...] = (0.0,)
    std: tuple[FiniteFloat, ...] = (1.0,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.input_shape) not in ((1,) if self.rows == "tokens" else (1, 3)):
            raise ValueError(f"rows of shape {self.input_shape} are not {self.rows}")
        for name in ("scale", "mean", "std"):
            if len(getattr(self, name)) not in (1, self.input_shape[0]):
                raise ValueError(f"{name} has not one number, nor one a feature")
        if min(*self.scale, *self.std) <= 0:
            raise ValueError("scale and std are not positive")
        for name in ("class_names", "vocabulary"):
            given = getattr(self, name)
            if given is not None and len(given) != self.classes:
                raise ValueError(f"{name} has {len(given)} entries for {self.classes} classes")
        return self

    @property
    def tokens(self) -> bool:
        """Whether rows are tokens, numbers of words in a vocabulary, instead of measured values."""
        return self.rows == "tokens"

    @cached_property
    def arrays(self) -> Arrays:
        """Scale, mean and deviation in the type of the arithmetic; they broadcast over rows."""
        dtype = np.float64 if self.rows == "float64" else np.float32
        view = (-1, *(1 for _ in self.input_shape[1:]))
        scale, mean, std = (
            np.array(values, dtype).reshape(view) for values in (self.scale, self.mean, self.std)
        )
        return Arrays(scale, mean, std)

    def apply(self, x: np.ndarray) -> Tensor:
        """Turn raw rows into what the network sees: a new contiguous tensor.

        Args:
            x: (n, *input_shape), of the type `rows` says; tokens int64.

        Returns:
            float32, or int64 tokens, of the shape of `x`.
        """
        if self.tokens:
            return torch.from_numpy(np.array(x, dtype=np.int64, order="C"))
        return torch.from_numpy(normalized(x, self.arrays))


def normalized(x: np.ndarray, by: Arrays) -> np.ndarray:
    """Return ((x / scale) - mean) / std as a new contiguous float32 array; infinite beyond it.

    Args:
        x: (n, D) or (n, C, H, W).
        by: what broadcasts over rows; computed with in its type.
    """
    out = np.array(x, dtype=by.mean.dtype, order="C")
    with np.errstate(over="ignore"):
        if by.scale.size > 1 or by.scale.item() != 1:
            out /= by.scale
        out -= by.mean
        out /= by.std
        return out.astype(np.float32, copy=False)
