"""Sources of tokens: a text file cut into rows of characters, and random sequences to reverse."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from learning.data.memory import check_memory
from learning.data.settings import ReversalSettings, TextSettings
from learning.data.splits import held_rows
from learning.data.transforms import random_words
from learning.data.words import reason
from learning.errors import UserError, named

Rows = tuple[np.ndarray, np.ndarray]
"""Tokens x and labels y, both int64 (N, T)."""

_MARK = b"\xef\xbb\xbf"  # a byte order mark, which no reader shows
_A_BYTE = 16  # bytes of memory that a byte of text takes while it is read
_A_SYMBOL = 32  # bytes of memory that a symbol takes while it is drawn


def read_text(settings: TextSettings) -> tuple[Rows, Rows, Rows, str]:
    """Cut a text into rows of characters.

    Returns:
        The rows of train, validation and test, and the vocabulary, sorted.

    Raises:
        UserError: when the file is missing, not UTF-8, or too short for one row of each split.
    """
    tokens, vocabulary = read_characters(settings.path)
    context, start = settings.context, len(tokens) - round(len(tokens) * settings.test)
    # A row and its labels are context + 1 characters, and the labels overlap with the next row:
    # a split of n rows is n * context + 1 characters of its own.
    rows = (start - (2 if settings.validation else 1)) // context
    for part, count, size in (
        ("train", rows, start),
        ("test", (len(tokens) - start - 1) // context, len(tokens) - start),
    ):
        if count < 1:
            raise UserError(
                f"{named(settings.path)} has {len(tokens)} characters, of which {size} are for the "
                f"{part} rows of data.context = {context} characters: use a longer text, another "
                "data.test or a smaller data.context"
            )
    rows = min(rows, settings.limit or rows)
    # The last rows, in a row as the others: drawn at random they would lie between train rows,
    # whose labels and neighbours give away what is in them.
    held = held_rows(rows, settings.validation)
    middle = (rows - held) * context + 1
    train = _windows(tokens[:middle], context)
    validation = _windows(tokens[middle : middle + held * context + 1], context)
    test = _windows(tokens[start:], context)
    n = settings.test_limit
    return train, validation, (test[0][:n], test[1][:n]), vocabulary


def read_characters(path: Path) -> tuple[np.ndarray, str]:
    """Read a text as numbers of its characters, int64 (L,), and the sorted vocabulary.

    Raises:
        UserError: when the file is missing, empty or not UTF-8.
    """
    data = _content(path)
    marked = len(_MARK) if data.startswith(_MARK) else 0
    try:
        # Bytes, not text: line ends stay as they are, on every system.
        text = data[marked:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{named(path)} is not UTF-8 at byte {marked + error.start}: save it as UTF-8 text"
        ) from error
    if not text:
        raise UserError(f"{named(path)} is empty: give a text with at least one row for each split")
    if (place := data.find(0)) >= 0:
        raise UserError(
            f"{named(path)} has a zero byte at byte {place}, as UTF-16 and files other than text "
            "have: save it as UTF-8 text"
        )
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    number = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    number[codes] = 1
    vocabulary = np.flatnonzero(number)
    number[vocabulary] = np.arange(len(vocabulary))
    return number[codes], "".join(map(chr, vocabulary.tolist()))


def _content(path: Path) -> bytes:
    """Read a regular file that fits into memory as text."""
    try:
        found = path.expanduser()
        status = found.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise OSError("it is a device or a pipe")
        check_memory(named(path), status.st_size * _A_BYTE, "give a shorter text")
        return found.read_bytes()
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a home unknown, a NUL in the path
        why = getattr(error, "strerror", None) or reason(error)
        raise UserError(
            f"cannot read {named(path)} ({why}): give the path of a text file"
        ) from error


def make_reversal(settings: ReversalSettings) -> tuple[Rows, Rows, Rows, int]:
    """Draw sequences, no two alike, so that no split holds a row of another.

    Returns:
        The rows of train, validation and test, and the size of the vocabulary.

    Raises:
        UserError: when there are not that many sequences, or a split has no rows.
    """
    # Enough to compare with the rows; all of them may be a number of a million digits.
    possible = settings.symbols ** min(settings.length, settings.rows.bit_length())
    if settings.rows > possible:
        raise UserError(
            f"data.rows = {settings.rows}, but there are only {possible} sequences of data.length "
            f"= {settings.length} over data.symbols = {settings.symbols}: lower data.rows"
        )
    check_memory(
        f"data.rows = {settings.rows} of data.length = {settings.length}",
        settings.rows * settings.length * _A_SYMBOL,
        "lower data.rows or data.length",
    )
    x = np.zeros((0, settings.length), dtype=np.int64)
    draw = 0
    while len(x) < settings.rows:
        words = random_words("reversal", settings.seed, draw, settings.rows * settings.length)
        more = (words % np.uint64(settings.symbols)).astype(np.int64).reshape(settings.rows, -1)
        x = np.concatenate((x, more))
        x = x[np.sort(np.unique(x, axis=0, return_index=True)[1])]  # the first of each, in order
        draw += 1
    x = x[: settings.rows]
    tested = round(len(x) * settings.test)
    if tested == 0:
        raise UserError(
            f"data.test={settings.test} of {len(x)} rows leaves 0 test rows: raise data.test or "
            "data.rows"
        )
    rows = len(x) - tested
    kept = rows - held_rows(rows, settings.validation)
    train, validation, test = ((part, part[:, ::-1]) for part in np.split(x, [kept, rows]))
    return train, validation, test, settings.symbols


def _windows(tokens: np.ndarray, context: int) -> Rows:
    """Cut (L,) into as many rows (N, T) as fit, each with the same tokens one further on.

    Views, not copies: a long text is in memory once.
    """
    count = max(0, len(tokens) - 1) // context
    end = count * context
    return tokens[:end].reshape(count, context), tokens[1 : end + 1].reshape(count, context)
