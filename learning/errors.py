"""Errors a user can cause or must know about; each message is one sentence: value, limit, fix."""

from __future__ import annotations

import os
import re
import reprlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 480
"""Characters of a sentence."""
_LEFT_OUT = " ... "


class LostError(RuntimeError):
    """A run ended by what nobody meant; it can go on from its last checkpoint."""


class UserError(ValueError):
    """Input that cannot be run: the command line prints the sentence and exits with code 2.

    However long the values are that a message quotes, it is one line of at most `MOST` characters.
    """

    def __str__(self) -> str:
        return one_line(super().__str__(), MOST)


def one_line(text: str, most: int = MOST) -> str:
    """A text in one line without control characters, its middle left out where it is long."""
    text = re.sub(r"\s*[\n\r]\s*", " ", text.strip())
    line = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if len(line) <= most:
        return line
    end = (most - len(_LEFT_OUT)) // 2
    return line[: most - len(_LEFT_OUT) - end] + _LEFT_OUT + line[-end:]


def shown(value: object, most: int = 80) -> str:
    """A value for a message, as Python writes it, as far as there is room for it.

    Takes no longer for a large or deep value than for a small one.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and len(value) > 4 * most:
        value = value[: 2 * most] + _LEFT_OUT + value[-2 * most :]
    return one_line(_REPR.repr(value), most)


def named(path: str | os.PathLike[str], most: int = 160) -> str:
    """A path, or the name of something, for a message: without quotes, as far as there is room."""
    return one_line(os.fspath(path), most)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Repr(reprlib.Repr):
    """Bounded in every direction."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxtuple, self.maxlist, self.maxdict = 4, 12, 12, 8
        self.maxstring = self.maxother = 400

    def repr_int(self, x: int, level: int) -> str:
        """Python itself refuses to write thousands of digits."""
        bits = x.bit_length()
        return repr(x) if bits < 300 else f"an integer of {bits} bits"


_REPR = _Repr()


@contextmanager
def exits_named() -> Iterator[None]:
    """Around code of users: what would end the process without a word is an error.

    Raises:
        UserError: instead of `SystemExit`.
    """
    try:
        yield
    except SystemExit as error:
        raise named_exit(error) from error


def named_exit(error: SystemExit) -> UserError:
    """What to say about code of a user that wants to end the process."""
    at = traceback.extract_tb(error.__traceback__)
    where = f"{at[-1].filename}, line {at[-1].lineno}" if at else "the code that was called"
    return UserError(
        f"SystemExit({shown(error.code)}) was raised in {where}, which would end this process "
        "without a word: raise an exception there that says what is wrong"
    )


class NonFiniteLossError(UserError):
    """A block's loss became NaN or infinite; raised before its gradient reaches any weight.

    Plain arguments so that it survives pickling between processes.
    """

    def __init__(self, block: int, step: int, loss: float) -> None:
        super().__init__(block, step, loss)
        self.block, self.step, self.loss = block, step, loss

    def __str__(self) -> str:
        return (
            f"the loss of block {self.block} is {self.loss} at step {self.step}: training stopped "
            "and the last checkpoint is kept; lower optimizer.lr or set optimizer.clip"
        )
