"""Array functions on a batch: the draws of a step and the augmentation they cause."""

from __future__ import annotations

from typing import Literal

import numpy as np

from learning.data.settings import AugmentSettings

# The last word of Philox's counter: shuffles and augmentations never share random numbers, even
# where an epoch and a step have the same number.
Stream = Literal["shuffle", "augment", "reversal"]
_STREAMS: dict[Stream, int] = {"shuffle": 1, "augment": 2, "reversal": 3}


def random_words(stream: Stream, seed: int, index: int, count: int) -> np.ndarray:
    """Return `count` random uint64, a pure function of (stream, seed, index).

    Raw words, because NumPy promises to keep those the same from version to version, unlike
    `Generator.permutation` and its like.
    """
    key = np.array([seed, index], dtype=np.uint64)
    counter = np.array([0, 0, 0, _STREAMS[stream]], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Return the order of `rows` rows in an epoch, int64 (rows,)."""
    return np.argsort(random_words("shuffle", seed, epoch, rows), kind="stable")


def augmentation_draws(seed: int, step: int, batch: int) -> np.ndarray:
    """Return the random numbers of a global batch, uint64 (batch, 3).

    Each row has its own three numbers (flip, vertical and horizontal offset), whatever is switched
    on and however the batch is cut into shards.
    """
    return random_words("augment", seed, step, 3 * batch).reshape(batch, 3)


def augment(x: np.ndarray, draws: np.ndarray, settings: AugmentSettings) -> np.ndarray:
    """Crop and flip each image by its own draws.

    Args:
        x: images, any type, (n, C, H, W).
        draws: uint64 (n, 3), from `augmentation_draws`.
        settings: what to do.

    Returns:
        An array of the type and shape of `x`; a new one if anything is done, and `x` otherwise.
    """
    if settings.crop:
        pad, (height, width) = settings.crop, x.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        offsets = (draws[:, 1:] % np.uint64(2 * pad + 1)).astype(np.intp)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        x = windows[np.arange(len(x)), :, offsets[:, 0], offsets[:, 1]]
    if settings.flip:
        mirrored = (draws[:, 0] >> np.uint64(63)).astype(bool)
        x = np.where(mirrored[:, None, None, None], x[..., ::-1], x)
    return x
