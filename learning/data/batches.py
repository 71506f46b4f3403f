"""Batches as a pure function of (seed, step): any process can make any part of any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from learning.data.datasets import Dataset
from learning.data.settings import AugmentSettings
from learning.data.splits import Split
from learning.data.transforms import augment as augmented
from learning.data.transforms import augmentation_draws, permutation
from learning.errors import UserError


class Batches:
    """The train batches of every step, and the evaluation batches of every split.

    Each epoch visits the train rows in a new order and drops the last partial batch. Nothing
    depends on which batches were made before, so a resumed run continues exactly.

    All tensors are freshly allocated and contiguous: x float32 (n, *input_shape), tokens int64;
    y int64 (n, *target_shape).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        batch: int,
        shards: int = 1,
        augment: AugmentSettings,
    ) -> None:
        """Check the sizes; no row is read yet.

        Args:
            dataset: where the rows come from.
            seed: of the shuffles and augmentations, 0 to 2**64 - 1.
            batch: rows in a global batch.
            shards: parts that a batch is cut into, of batch / shards rows each.
            augment: applied to train batches only.

        Raises:
            UserError: when a size does not fit: `batch` beyond the train rows or no multiple of
                `shards`, a seed out of range, augmentation of rows that are no images, a crop as
                large as the image.
        """
        _check_sizes(len(dataset.train), seed, batch, shards)
        _check_augment(dataset.input_shape, augment)
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch
        self.shards = shards
        self.augment = augment
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the train split."""
        return len(self.dataset.train) // self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the global batch of `step`: all its shards, one after the other.

        Raises:
            IndexError: when `step` is negative.
        """
        return self._rows(step, 0, self.batch_size)

    def shard(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Return part `index` of the batch of `step`, batch / shards rows.

        Raises:
            IndexError: when `step` is negative or `index` outside 0..shards-1.
        """
        if not 0 <= index < self.shards:
            raise IndexError(f"shard {index} is outside 0..{self.shards - 1}")
        size = self.batch_size // self.shards
        return self._rows(step, index * size, (index + 1) * size)

    def evaluation_batches(self, split_name: str, batch: int = 256) -> int:
        """Count the batches of `evaluation`, the partial last one included.

        Raises:
            UserError: when there is no such split or `batch` is below 1.
        """
        return -(-len(self._split(split_name, batch)) // batch)

    def evaluation_batch(
        self, split_name: str, index: int, batch: int = 256
    ) -> tuple[Tensor, Tensor]:
        """Return batch `index` of a split in its order, not augmented; the last may be partial.

        Raises:
            UserError: when there is no such split or `batch` is below 1.
            IndexError: when `index` is not below `evaluation_batches`.
        """
        split = self._split(split_name, batch)
        count = self.evaluation_batches(split_name, batch)
        if not 0 <= index < count:
            raise IndexError(f"batch {index} of {split_name!r} is outside 0..{count - 1}")
        rows = slice(index * batch, (index + 1) * batch)
        return self._tensors(split.take(rows), split.y[rows])

    def evaluation(self, split_name: str, batch: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over a split: every row once, in order, not augmented.

        Raises:
            UserError: at once, when there is no such split or `batch` is below 1.
        """
        count = self.evaluation_batches(split_name, batch)
        return (self.evaluation_batch(split_name, index, batch) for index in range(count))

    def _rows(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if step < 0:
            raise IndexError(f"step {step} is below 0")
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        rows = self._epoch_order(epoch)[first + start : first + stop]
        train = self.dataset.train
        x = train.take(rows)
        if self.augment.flip or self.augment.crop:
            # Drawn for the global batch and then cut, so that shards do not change the numbers.
            draws = augmentation_draws(self.seed, step, self.batch_size)[start:stop]
            x = augmented(x, draws, self.augment)
        return self._tensors(x, train.y[rows])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        order = self._order
        if order is None or order[0] != epoch:
            order = (epoch, permutation(self.seed, epoch, len(self.dataset.train)))
            self._order = order  # one assignment, so threads never see half of it
        return order[1]

    def _split(self, name: str, batch: int) -> Split:
        if batch < 1:
            raise UserError(f"the evaluation batch is {batch}, below 1: set it to at least 1")
        return self.dataset.split(name)

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(np.array(y, dtype=np.int64, order="C"))
        return self.dataset.preprocessing.apply(x), labels


def _check_sizes(rows: int, seed: int, batch: int, shards: int) -> None:
    if not 0 <= seed < 2**64:
        raise UserError(f"the seed {seed} is outside 0..2**64-1: choose one inside")
    if batch < 1 or shards < 1:
        raise UserError(
            f"batch {batch} and shards {shards} must both be at least 1: raise the smaller one"
        )
    if batch > rows:
        raise UserError(
            f"batch {batch} is larger than the {rows} train rows: lower batch to at most {rows} "
            "or use more rows"
        )
    if batch % shards:
        raise UserError(
            f"batch {batch} cannot be cut into {shards} equal shards: set batch to a multiple of "
            f"{shards}"
        )


def _check_augment(input_shape: tuple[int, ...], augment: AugmentSettings) -> None:
    if not (augment.flip or augment.crop):
        return
    if len(input_shape) != 3:
        raise UserError(
            f"augment works on images (C, H, W), not on rows of shape {input_shape}: set "
            "data.augment.flip to false and data.augment.crop to 0"
        )
    # A crop as large as the image could show nothing but padding.
    limit = min(input_shape[1:]) - 1
    if augment.crop > limit:
        raise UserError(
            f"data.augment.crop is {augment.crop}, above {limit} for images of "
            f"{input_shape[1]}x{input_shape[2]} pixels: lower it"
        )
