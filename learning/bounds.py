"""The limits of all settings: numbers, texts and paths that no run could mean are refused early.

A limit is what nobody in the field would rightly meet, not what fits this machine: for that see
`learning.memory`. Numbers are strict: no setting takes true for 1 or '3' for 3, and none that is
infinite or no number, but 1e3 is a whole number.
"""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from learning.errors import shown

MOST_ENTRIES = 1_000
"""Of a list, such as one learning rate a block."""
MOST_CLASSES = 10_000_000
MOST_LABEL = 100
"""Characters of a name that becomes a part of the names of files."""
MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 4_000
"""What file systems take."""


def _whole(value: Any) -> Any:
    """1e3 and numpy's integers as integers; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return value


def _real(value: Any) -> Any:
    """Numpy's numbers as floats; anything else as it is."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        return float(value)
    return value


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{shown(text)} has characters that cannot be printed: leave them out")
    return text


def usable_path(path: Any) -> Any:
    """Refuse, as a ValueError, what no file system takes and what records could not show."""
    if not isinstance(path, str | os.PathLike):
        return path
    text = os.fspath(path)
    if not text:
        raise ValueError("an empty path is no place: give a path")
    _text(text)
    longest = max(len(part.encode()) for part in text.split("/"))
    if longest > MOST_NAME_BYTES or len(text.encode()) > MOST_PATH_BYTES:
        raise ValueError(
            f"the path {shown(text)} has {len(text.encode())} bytes, {longest} in one name: use at "
            f"most {MOST_PATH_BYTES}, and {MOST_NAME_BYTES} in a name"
        )
    return path


_WHOLE, _REAL = BeforeValidator(_whole), BeforeValidator(_real)

# Whole numbers.
Width = Annotated[int, Field(strict=True, ge=1, le=1_000_000), _WHOLE]
"""Features or channels."""
Depth = Annotated[int, Field(strict=True, ge=1, le=1_000), _WHOLE]
"""Layers, blocks, or heads of attention."""
DepthFrom0 = Annotated[int, Field(strict=True, ge=0, le=1_000), _WHOLE]
Pixels = Annotated[int, Field(strict=True, ge=1, le=10_000), _WHOLE]
"""A side of an image, or of its part."""
PixelsFrom0 = Annotated[int, Field(strict=True, ge=0, le=10_000), _WHOLE]
Tokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000), _WHOLE]
"""Of one row."""
Classes = Annotated[int, Field(strict=True, ge=1, le=MOST_CLASSES), _WHOLE]
"""Labels, or words of a vocabulary."""
Samples = Annotated[int, Field(strict=True, ge=1, le=10_000_000), _WHOLE]
"""Of one batch."""
Rows = Annotated[int, Field(strict=True, ge=1, le=10**12), _WHOLE]
"""Of a dataset."""
Steps = Annotated[int, Field(strict=True, ge=1, le=10**12), _WHOLE]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**64 - 1), _WHOLE]
Threads = Annotated[int, Field(strict=True, ge=1, le=1_000), _WHOLE]
Kept = Annotated[int, Field(strict=True, ge=1, le=10_000), _WHOLE]
"""Of what is kept at the same time, such as messages."""
KeptFrom0 = Annotated[int, Field(strict=True, ge=0, le=10_000), _WHOLE]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000), _WHOLE]
"""Of anything else."""
CountFrom0 = Annotated[int, Field(strict=True, ge=0, le=1_000_000), _WHOLE]

# Numbers.
Rate = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False), _REAL]
"""A learning rate or the weight of a term; 0 turns it off."""
Factor = Annotated[float, Field(strict=True, ge=1e-12, le=1e6, allow_inf_nan=False), _REAL]
"""What something is multiplied or divided by."""
Size = Annotated[float, Field(strict=True, ge=0.001, le=1_000, allow_inf_nan=False), _REAL]
"""A width in widths of something else."""
Divisor = Annotated[float, Field(strict=True, ge=1, le=1e12, allow_inf_nan=False), _REAL]
Epsilon = Annotated[float, Field(strict=True, ge=1e-30, le=1, allow_inf_nan=False), _REAL]
Epochs = Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False), _REAL]
Seconds = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False), _REAL]
SecondsFrom0 = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False), _REAL]
Cores = Annotated[float, Field(strict=True, ge=0.01, le=10_000, allow_inf_nan=False), _REAL]
Bandwidth = Annotated[float, Field(strict=True, gt=0), _REAL]
"""Bytes a second; infinite where a way is free."""
TestShare = Annotated[float, Field(strict=True, ge=0.01, le=0.9, allow_inf_nan=False), _REAL]
InnerShare = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False), _REAL]
Share = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False), _REAL]
"""Less than all."""
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False), _REAL]
"""Up to all."""
Length = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False), _REAL]
"""A share of all steps that is not nothing."""
Reduction = Annotated[float, Field(strict=True, gt=1, le=1e6, allow_inf_nan=False), _REAL]
Value = Annotated[float, Field(strict=True, ge=-1e12, le=1e12, allow_inf_nan=False), _REAL]

# Lists.
Seeds = Annotated[tuple[Seed, ...], Field(max_length=MOST_ENTRIES)]
Rates = Annotated[tuple[Rate, ...], Field(max_length=MOST_ENTRIES)]
Widths = Annotated[tuple[Width, ...], Field(max_length=MOST_ENTRIES)]
Depths = Annotated[tuple[Depth, ...], Field(max_length=MOST_ENTRIES)]
Strides = Annotated[tuple[Pixels, ...], Field(max_length=MOST_ENTRIES)]

# Others.
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(max_length=500), AfterValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_text)]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST_ENTRIES)]
LongText = Annotated[str, Field(max_length=10_000)]
Words = Annotated[tuple[LongText, ...], Field(max_length=MOST_ENTRIES)]
Address = Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(_text)]
"""Of a server, or a place behind one."""
FilePath = Annotated[Path, BeforeValidator(usable_path)]
