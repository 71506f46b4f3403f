"""A working directory for what the documentation runs."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.docs.pages import README, ROOT, code_blocks


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that README's commands name."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples/digits.yaml", tmp_path / "run.yaml")
    (network,) = [code for code in code_blocks(README, "python") if code.startswith("# mynet.py")]
    (tmp_path / "mynet.py").write_text(network)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    images = []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"img": images, "label": [i % 10 for i in range(20)]})
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(table, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    monkeypatch.setenv("BLOCKLOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path
