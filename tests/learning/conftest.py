"""Fixtures of the tests of Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learning.data import parquet
from tests.learning.pictures import encode, pictures, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """12 color images, labels 0, 1, 2, 0, ..."""
    return write(tmp_path / "a.parquet", [encode(p) for p in pictures(12)], np.arange(12) % 3)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every image decoded from now on."""
    seen: list[bytes] = []
    original = parquet.decode_image

    def counting(data: bytes) -> np.ndarray:
        seen.append(data)
        return original(data)

    monkeypatch.setattr(parquet, "decode_image", counting)
    return seen
