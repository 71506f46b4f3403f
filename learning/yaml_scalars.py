"""Plain scalars of YAML 1.2's core schema: what a word without quotes means.

PyYAML knows YAML 1.1, in which `yes` is true, `010` is 8, `1:30` is 90 and `1e-3` is text.
"""

from __future__ import annotations

import math
import re

MOST_DIGITS = 300
"""More digits than any number needs; Python reads very long ones slowly, or not at all."""
NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
Scalar = None | bool | int | float | str


def plain_scalar(text: str) -> Scalar:
    """What a word without quotes means.

    Raises:
        ValueError: for a number with more digits, or farther from 0, than can be kept, or so close
            to 0 that it would be 0.
    """
    if NULL.match(text):
        return None
    if BOOL.match(text):
        return text[0] in "tT"
    if INT.match(text):
        return _integer(text)
    if FLOAT.match(text):
        return _float(text)
    return text


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits: write at most {MOST_DIGITS}")
    if digits.startswith("0o"):
        return int(digits[2:], 8)
    if digits.startswith("0x"):
        return int(digits[2:], 16)
    return int(text)


def _float(text: str) -> float:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} characters: write at most {MOST_DIGITS}")
    word = text.lower().lstrip("+-")
    if word == ".inf":
        return -math.inf if text.startswith("-") else math.inf
    if word == ".nan":
        return math.nan
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number above 1.8e308, the largest that is kept: write a smaller one")
    mantissa = re.split("[eE]", text)[0]
    if number == 0 and re.search("[1-9]", mantissa):
        raise ValueError("a number closer to 0 than 5e-324, which would be kept as 0: write 0")
    return number
