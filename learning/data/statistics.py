"""The mean and deviation of each feature of the train rows, whatever its units are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from learning.data.splits import Split

CHUNK = 1 << 20  # values worked on at a time: keeps memory mapped images out of memory
_ORDINARY = 40  # binary orders around 1 in which nothing that is computed leaves float32


class Numbers(NamedTuple):
    """What `Preprocessing` calls scale, mean and std: one number or one a feature."""

    scale: tuple[float, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def measure(split: Split, unit: float) -> Numbers:
    """Measure the rows of a split, feature by feature: channels (C, H, W), columns of (D,).

    A feature that differs by no more than the spacing of its own type is constant. It carries
    nothing: it becomes 0, and what later rows differ by is seen in units of its own size.

    Args:
        split: not empty, finite, uint8, float32 or float64.
        unit: what all values are divided by.
    """
    features, count = split.row_shape[0], len(split) * math.prod(split.row_shape[1:])
    pixels = split.dtype == np.uint8
    low, high = (np.zeros(features), np.full(features, 255.0)) if pixels else _extremes(split)
    # In units of its own size, a power of two, a feature has the same digits, and no sum or square
    # of it overflows. Pixels need none.
    size = np.ones(features) if pixels else _powers_of_two(_largest(low, high))
    least = low / size

    def above_least(chunk: np.ndarray) -> np.ndarray:
        return chunk if pixels else chunk / size[:, None] - least[:, None]

    total, square = np.zeros(features), np.zeros(features)
    for chunk in _chunks(split):
        total += above_least(chunk).sum(axis=(0, 2), dtype=np.float64)
    offset = total / count
    # Two passes: the square of the mean may swamp the variance.
    for chunk in _chunks(split):
        deviation = above_least(chunk) - offset[:, None]
        square += np.einsum("ncp,ncp->c", deviation, deviation)
    mean, std = least + offset, np.sqrt(square / count)
    constant = std == 0 if pixels else high / size - least <= _spacing(low, high) / size
    std = np.where(constant, 255.0 if pixels else 1.0, std)
    scale = _scale(split.dtype, size, unit)
    found = (scale, mean / (scale / size), std / (scale / size))
    return Numbers(*(tuple(values.tolist()) for values in found))


def _scale(dtype: np.dtype, size: np.ndarray, unit: float) -> np.ndarray:
    """What to divide by: `unit`, but for features so large or small that their type would break."""
    order = np.log2(size)
    if (np.abs(order) <= _ORDINARY).all():
        return np.full(1, unit)
    limits = np.finfo(dtype)
    normal = np.clip(size, float(limits.smallest_normal), 2.0 ** (limits.maxexp - 1))
    return np.where(np.abs(order) <= _ORDINARY, unit, normal)


def _powers_of_two(values: np.ndarray) -> np.ndarray:
    """The largest power of two that is not above each value; 1 for 0."""
    _, exponent = np.frexp(values)
    return np.where(values > 0, np.ldexp(1.0, exponent - 1), 1.0)


def _largest(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(low), np.abs(high))


def _spacing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From the largest number of each feature to its neighbour in the features' own type."""
    return np.abs(np.spacing(_largest(low, high))).astype(np.float64)


def _extremes(split: Split) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.inf, -np.inf
    for chunk in _chunks(split):
        low = np.minimum(low, chunk.min(axis=(0, 2)))
        high = np.maximum(high, chunk.max(axis=(0, 2)))
    return np.asarray(low), np.asarray(high)


def _chunks(split: Split) -> Iterator[np.ndarray]:
    """The rows as (n, features, values), of their own type."""
    for rows in split.chunks(CHUNK):
        yield rows.reshape(len(rows), rows.shape[1], -1)
