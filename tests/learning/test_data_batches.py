"""Batches are a pure function of (seed, step); augmentation and evaluation do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.data import AugmentSettings, Batches, Dataset, Preprocessing, Split
from learning.data.transforms import augment, augmentation_draws, random_words
from learning.errors import UserError

PLAIN = AugmentSettings()
BOTH = AugmentSettings(flip=True, crop=2)


def make_dataset(train: int = 37, validation: int = 5, test: int = 7) -> Dataset:
    """Images that carry their row number: y is unique over all splits, x is filled from it."""
    rows = train + validation + test
    noise = np.random.default_rng(0).integers(1, 256, (rows, 2, 4, 5), dtype=np.uint8)
    y = np.arange(rows)
    parts = np.split(np.arange(rows), [train, train + validation])
    one, two, three = (Split(noise[part], y[part]) for part in parts)
    numbers = {"scale": (255.0,), "mean": (0.4, 0.6), "std": (0.2, 0.3)}
    preprocessing = Preprocessing(rows="uint8", input_shape=(2, 4, 5), classes=rows, **numbers)
    return Dataset("rows", one, two, three, preprocessing)


def seen(x: np.ndarray) -> np.ndarray:
    """What the network sees of rows of `make_dataset`."""
    mean, std = (np.array(v, np.float32).reshape(2, 1, 1) for v in ((0.4, 0.6), (0.2, 0.3)))
    return (x.astype(np.float32) / np.float32(255) - mean) / std


DATASET = make_dataset()


def make(batch: int = 8, shards: int = 1, seed: int = 3, augment=BOTH, dataset=DATASET) -> Batches:
    return Batches(dataset, seed=seed, batch=batch, shards=shards, augment=augment)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 10**6),
    shards=st.integers(1, 6),
    size=st.integers(1, 6),
)
def test_shards_concatenate_to_the_batch_bit_for_bit(seed, step, shards, size):
    whole = make(batch=shards * size, seed=seed).batch(step)
    cut = make(batch=shards * size, shards=shards, seed=seed)
    parts = [cut.shard(step, index) for index in reversed(range(shards))][::-1]
    for position in (0, 1):
        assert torch.equal(torch.cat([part[position] for part in parts]), whole[position])
        assert torch.equal(cut.batch(step)[position], whole[position])


@settings(max_examples=20)
@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_does_not_depend_on_the_batches_before_it(steps):
    used = make()
    for step in steps:
        x, y = used.batch(step)
        fresh_x, fresh_y = make().batch(step)
        assert torch.equal(x, fresh_x) and torch.equal(y, fresh_y)


def test_batches_are_pinned_across_versions():
    # Checked against a plain-Python Philox4x64-10; a change breaks the resumption of older runs.
    assert make(batch=6).batch(9)[1].tolist() == [35, 2, 36, 29, 12, 32]
    assert (augmentation_draws(3, 9, 2) % np.uint64(100)).tolist() == [[92, 57, 13], [9, 6, 4]]


def test_tensors_are_fresh_contiguous_and_typed():
    batches = make(augment=PLAIN)
    for make_one in (lambda: batches.shard(0, 0), lambda: batches.evaluation_batch("test", 0)):
        x, y = make_one()
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.is_contiguous() and y.is_contiguous()
        before = x.clone(), y.clone()
        x.zero_()
        y.fill_(-1)
        again = make_one()
        assert torch.equal(again[0], before[0]) and torch.equal(again[1], before[1])


@pytest.mark.parametrize("batch", [1, 8, 37])
def test_an_epoch_visits_distinct_train_rows_only(batch):
    batches = make(batch=batch)
    assert batches.steps_per_epoch == 37 // batch
    orders = []
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        seen = torch.cat([batches.batch(step)[1] for step in steps]).tolist()
        assert len(set(seen)) == len(seen) == 37 // batch * batch
        assert set(seen) <= set(DATASET.train.y.tolist())
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_seed_changes_order_and_augmentation():
    assert not torch.equal(make(seed=1).batch(0)[1], make(seed=2).batch(0)[1])
    assert not np.array_equal(augmentation_draws(1, 0, 4), augmentation_draws(2, 0, 4))


def test_shuffle_and_augmentation_share_no_random_numbers():
    shuffle = random_words("shuffle", 0, 0, 1000)
    assert not set(shuffle.tolist()) & set(random_words("augment", 0, 0, 1000).tolist())


def test_x_belongs_to_y():
    x, y = make(augment=PLAIN).batch(5)
    expected = seen(DATASET.train.x[y.numpy()])
    assert np.array_equal(x.numpy(), expected)


def naive_augment(x: np.ndarray, draws: np.ndarray, chosen: AugmentSettings) -> np.ndarray:
    out = np.zeros_like(x)
    count, channels, height, width = x.shape
    for n in range(count):
        flip, down, right = (int(word) for word in draws[n])
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    column = width - 1 - j if chosen.flip and flip >= 2**63 else j
                    row = i + down % (2 * chosen.crop + 1) - chosen.crop
                    column += right % (2 * chosen.crop + 1) - chosen.crop
                    if 0 <= row < height and 0 <= column < width:
                        out[n, c, i, j] = x[n, c, row, column]
    return out


@settings(max_examples=20)
@given(flip=st.booleans(), crop=st.integers(0, 3), step=st.integers(0, 1000))
def test_augmentation_equals_a_naive_loop(flip, crop, step):
    chosen = AugmentSettings(flip=flip, crop=crop)
    draws = augmentation_draws(3, step, 8)
    x = DATASET.train.x[:8]
    expected = naive_augment(x, draws, chosen)
    assert np.array_equal(augment(x, draws, chosen), expected)
    streamed, y = make(augment=chosen).batch(step)
    expected = naive_augment(DATASET.train.x[y.numpy()], draws, chosen)
    assert np.array_equal(streamed.numpy(), seen(expected))


def test_draws_cover_all_flips_and_offsets():
    draws = augmentation_draws(0, 0, 500)
    assert 200 < (draws[:, 0] >= 2**63).sum() < 300
    for column in (1, 2):
        counts = np.bincount((draws[:, column] % np.uint64(5)).astype(int), minlength=5)
        assert counts.min() > 60


@settings(max_examples=20)
@given(batch=st.integers(1, 50), name=st.sampled_from(["train", "validation", "test"]))
def test_evaluation_covers_every_row_once_in_order(batch, name):
    batches = make()
    split = DATASET.split(name)
    found = list(batches.evaluation(name, batch))
    assert len(found) == batches.evaluation_batches(name, batch) == -(-len(split) // batch)
    assert torch.cat([y for _, y in found]).tolist() == split.y.tolist()
    expected = seen(split.x)
    assert np.array_equal(torch.cat([x for x, _ in found]).numpy(), expected)
    x, y = batches.evaluation_batch(name, len(found) - 1, batch)
    assert torch.equal(x, found[-1][0]) and torch.equal(y, found[-1][1])


def test_evaluation_of_an_empty_validation_split():
    batches = make(dataset=make_dataset(validation=0))
    assert batches.evaluation_batches("validation", 4) == 0
    assert list(batches.evaluation("validation", 4)) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 8, "shards": 3}, "batch 8 cannot be cut into 3 equal shards"),
        ({"batch": 38}, "batch 38 is larger than the 37 train rows"),
        ({"batch": 0}, "batch 0 and shards 1 must both be at least 1"),
        ({"shards": 0}, "batch 8 and shards 0 must both be at least 1"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"seed": 2**64}, "seed 18446744073709551616 is outside"),
        ({"augment": AugmentSettings(crop=4)}, "crop is 4, above 3 for images of 4x5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        make(**arguments)


def test_augmenting_flat_rows_is_refused():
    split = Split(np.ones((4, 3), np.float32), np.zeros(4, np.int64))
    preprocessing = Preprocessing(rows="float32", input_shape=(3,), classes=1)
    flat = Dataset("flat", split, split, split, preprocessing)
    assert make(batch=2, augment=PLAIN, dataset=flat).batch(0)[0].shape == (2, 3)
    with pytest.raises(UserError, match=r"not on rows of shape \(3,\)"):
        make(batch=2, dataset=flat)


def test_positions_that_do_not_exist_are_refused():
    batches = make(shards=2)
    for call in (
        lambda: batches.batch(-1),
        lambda: batches.shard(0, 2),
        lambda: batches.shard(0, -1),
        lambda: batches.evaluation_batch("test", 1),
    ):
        with pytest.raises(IndexError, match="outside|below"):
            call()
    with pytest.raises(UserError, match="no split 'tset': use one of train, validation, test"):
        batches.evaluation("tset")
    with pytest.raises(UserError, match="evaluation batch is 0"):
        batches.evaluation("test", 0)
