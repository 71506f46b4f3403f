"""Rows of tokens: which characters go where, what is reversed, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.data import (
    AugmentSettings,
    Batches,
    Dataset,
    DigitsSettings,
    ReversalSettings,
    TextSettings,
    load_dataset,
    memory,
)
from learning.data.tokens import read_characters
from learning.errors import UserError

SPLITS = ("train", "validation", "test")


def text_of(folder: Path, text: str, **fields) -> Dataset:
    path = folder / "book.txt"
    path.write_bytes(text.encode())
    return load_dataset(TextSettings(path=path, **fields))


def words(dataset: Dataset, vocabulary: str) -> dict[str, list[tuple[str, str]]]:
    """Every row of every split as its characters and its labels' characters."""

    def spell(row: np.ndarray) -> str:
        return "".join(vocabulary[i] for i in row)

    found = {}
    for name in SPLITS:
        split = dataset.split(name)
        found[name] = [(spell(x), spell(y)) for x, y in zip(split.x, split.y, strict=True)]
    return found


def test_text_by_hand(tmp_path):
    # 20 characters: the last 5 are for the test, the 15 before are 4 rows of 3 and 2 labels.
    dataset = text_of(tmp_path, "abcdefghijklmnopqrst", context=3, test=0.25, validation=0.25)
    assert words(dataset, "abcdefghijklmnopqrst") == {
        "train": [("abc", "bcd"), ("def", "efg"), ("ghi", "hij")],
        "validation": [("klm", "lmn")],
        "test": [("pqr", "qrs")],
    }
    assert (dataset.name, dataset.classes) == ("book", 20)
    assert (dataset.input_shape, dataset.target_shape, dataset.tokens) == ((3,), (3,), True)
    for name in SPLITS:
        split = dataset.split(name)
        assert split.x.dtype == split.y.dtype == np.int64


def test_text_without_validation_and_with_limits(tmp_path):
    text = "abcdefghijklmnopqrst"
    dataset = text_of(tmp_path, text, context=2, test=0.4, validation=0)
    assert words(dataset, text) == {
        "train": [("ab", "bc"), ("cd", "de"), ("ef", "fg"), ("gh", "hi"), ("ij", "jk")],
        "validation": [],
        "test": [("mn", "no"), ("op", "pq"), ("qr", "rs")],
    }
    dataset = text_of(tmp_path, text, context=2, test=0.4, validation=0.5, limit=4, test_limit=2)
    assert words(dataset, text) == {
        "train": [("ab", "bc"), ("cd", "de")],
        "validation": [("fg", "gh"), ("hi", "ij")],
        "test": [("mn", "no"), ("op", "pq")],
    }
    assert dataset.classes == 20  # of the whole text, whatever is used of it


def test_the_vocabulary_is_sorted_and_line_ends_are_characters(tmp_path):
    text = "é\r\nb𝄞ab" * 2
    dataset = text_of(tmp_path, text, context=1, test=0.3, validation=0)
    assert dataset.classes == 6
    order = "\n\rabé𝄞"
    assert order == "".join(sorted(set(text)))
    assert dataset.train.x[:, 0].tolist() == [order.index(c) for c in text[:9]]


@settings(max_examples=60)
@given(
    length=st.integers(1, 80),
    context=st.integers(1, 9),
    test=st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    validation=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    limit=st.none() | st.integers(1, 9),
)
def test_splits_share_no_character(tmp_path_factory, length, context, test, validation, limit):
    text = "".join(chr(0x100 + i) for i in range(length))  # each character once
    folder = tmp_path_factory.mktemp("text")
    fields = {"context": context, "test": test, "validation": validation, "limit": limit}
    try:
        dataset = text_of(folder, text, **fields)
    except UserError:
        return  # too short for these shares; the sentences are tested below
    seen = {
        name: {*dataset.split(name).x.ravel().tolist(), *dataset.split(name).y.ravel().tolist()}
        for name in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]
    for name in SPLITS:
        split = dataset.split(name)
        assert split.x.shape == split.y.shape == (len(split), context)
        assert np.array_equal(split.y, split.x + 1)
        used = split.x.ravel()
        assert np.array_equal(used, np.arange(len(used)) + (used[0] if len(used) else 0))
    assert len(dataset.train) and len(dataset.test)
    assert bool(len(dataset.validation)) == bool(validation)


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("abc", {"context": 5}, "has 3 characters, of which 3 are for the train rows of data.con"),
        ("abcdefgh" * 4, {"context": 9}, "of which 3 are for the test rows of data.context = 9"),
        ("abcdefgh" * 4, {"context": 2, "validation": 0.01}, "0 validation rows: raise data.val"),
        ("abcdefgh" * 4, {"context": 2, "limit": 2, "validation": 0.9}, "leaves 0 train rows"),
        ("", {}, "book.txt is empty: give a text"),
    ],
)
def test_texts_that_are_too_short_are_refused(tmp_path, text, fields, said):
    with pytest.raises(UserError, match=said):
        text_of(tmp_path, text, **fields)


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "no.txt"
    with pytest.raises(UserError, match=r"cannot read .*no\.txt \(No such file or directory\): g"):
        load_dataset(TextSettings(path=path))
    with pytest.raises(UserError, match=r"cannot read .* \(Is a directory\): give the path"):
        load_dataset(TextSettings(path=tmp_path))
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"no\.txt is not UTF-8 at byte 3: save it as UTF-8"):
        load_dataset(TextSettings(path=path))


def test_a_byte_order_mark_is_no_character(tmp_path):
    text = "abcdefgh\r\n" * 4
    plain, marked = (
        text_of(tmp_path, text, context=2),
        text_of(tmp_path, "\ufeff" + text, context=2),
    )
    assert plain.classes == marked.classes == 10
    for name in SPLITS:
        assert np.array_equal(plain.split(name).x, marked.split(name).x)
    with pytest.raises(UserError, match=r"book\.txt is not UTF-8 at byte 5: save it"):
        (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbfab\xff")
        load_dataset(TextSettings(path=tmp_path / "book.txt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text".encode("utf-16-le") * 9, "has a zero byte at byte 1, as UTF-16 and files other"),
        ("text".encode("utf-16") * 9, "is not UTF-8 at byte 0"),
        ("é".encode("latin-1") * 9, "is not UTF-8 at byte 0"),
        (b"lone \xed\xa0\x80 half of a pair", "is not UTF-8 at byte 5"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_other_encodings_are_refused(tmp_path, content, said):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"book.txt {said}"):
        load_dataset(TextSettings(path=path, context=2))


def test_texts_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 511)
    with pytest.raises(UserError, match="book.txt needs 512 bytes of memory, but 511 bytes are"):
        text_of(tmp_path, "a" * 32, context=2)


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "n" * 300, "~nobody-has-this-name/a"])
def test_texts_that_cannot_be_read_are_refused(path):
    with pytest.raises(UserError, match="cannot read .*: give the path of a text file") as caught:
        read_characters(Path(path))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 10**6, "symbols": 10**7, "rows": 10**7}, "of memory, but .* are free: lower"),
        ({"length": 1, "symbols": 9, "rows": 10}, "there are only 9 sequences"),
        ({"length": 3, "symbols": 2, "rows": 9}, "there are only 8 sequences"),
    ],
)
def test_reversals_of_any_size_are_judged_at_once(fields, said):
    with pytest.raises(UserError, match=said):
        load_dataset(ReversalSettings(**fields))


def test_reversal_labels_are_the_reversed_rows():
    dataset = load_dataset(ReversalSettings(length=5, symbols=3, rows=100, test=0.2))
    assert [len(dataset.split(name)) for name in SPLITS] == [72, 8, 20]
    assert (dataset.classes, dataset.input_shape, dataset.target_shape) == (3, (5,), (5,))
    for name in SPLITS:
        split = dataset.split(name)
        assert all(y == x[::-1] for x, y in zip(split.x.tolist(), split.y.tolist(), strict=True))
        assert split.x.dtype == split.y.dtype == np.int64


def test_no_two_rows_are_alike():
    every = load_dataset(ReversalSettings(length=3, symbols=4, rows=64))
    found = {tuple(row) for name in SPLITS for row in every.split(name).x.tolist()}
    assert found == set(itertools.product(range(4), repeat=3))


def test_reversal_depends_on_its_seed_alone():
    first, again, other = (load_dataset(ReversalSettings(rows=50, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.train.x, again.train.x)
    assert not np.array_equal(first.train.x, other.train.x)
    # A change of these numbers breaks the resumption of older runs.
    assert first.train.x[0].tolist() == [3, 7, 9, 9, 1, 3, 5, 2, 4, 7, 2, 9, 0, 4, 1, 8]
    counts = np.bincount(load_dataset(ReversalSettings()).train.x.ravel(), minlength=10)
    assert counts.min() > 0.9 * counts.mean()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 2, "symbols": 3}, "rows = 10000, but there are only 9 sequences of data.len"),
        ({"rows": 20, "test": 0.02}, "data.test=0.02 of 20 rows leaves 0 test rows: raise"),
        ({"rows": 20, "validation": 0.01}, "leaves 0 validation rows"),
        ({"rows": 20, "validation": 0.99}, "leaves 0 train rows"),
    ],
)
def test_reversals_that_cannot_be_made_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        load_dataset(ReversalSettings(**fields))


# --- batches ------------------------------------------------------------------------------------

REVERSAL = load_dataset(ReversalSettings(length=5, symbols=3, rows=60))


def batches(shards: int = 1, seed: int = 3, augment: AugmentSettings | None = None) -> Batches:
    augment = augment or AugmentSettings()
    return Batches(REVERSAL, seed=seed, batch=12, shards=shards, augment=augment)


def test_batches_of_tokens_are_integers_and_a_function_of_the_step():
    for step in (0, 7, 3):
        x, y = batches().batch(step)
        assert x.dtype == y.dtype == torch.int64
        assert x.shape == y.shape == (12, 5)
        assert torch.equal(y, x.flip(1))
        again = batches(shards=3)
        parts = [again.shard(step, index) for index in (2, 0, 1)]
        assert torch.equal(torch.cat([parts[i][0] for i in (1, 2, 0)]), x)
        assert torch.equal(torch.cat([parts[i][1] for i in (1, 2, 0)]), y)


def test_batches_of_tokens_are_fresh_and_contiguous():
    make = batches()
    for one in (lambda: make.batch(0), lambda: make.evaluation_batch("test", 0, 4)):
        x, y = one()
        assert x.is_contiguous() and y.is_contiguous()
        before = x.clone(), y.clone()
        x.zero_()
        y.fill_(-1)
        again = one()
        assert torch.equal(again[0], before[0]) and torch.equal(again[1], before[1])


def test_evaluation_of_tokens_is_every_row_in_order():
    x = torch.cat([x for x, _ in batches().evaluation("test", 4)])
    assert np.array_equal(x.numpy(), REVERSAL.test.x)


def test_augmenting_tokens_is_refused():
    with pytest.raises(UserError, match=r"augment works on images .* not on rows of shape \(5,\)"):
        batches(augment=AugmentSettings(flip=True))


def test_other_datasets_hold_no_tokens():
    digits = load_dataset(DigitsSettings())
    assert not digits.tokens and digits.target_shape == ()
