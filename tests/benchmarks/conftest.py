"""What the tests of benchmarks share: a crew, and records that stay in the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.crew import Crew
from tests.benchmarks.helpers import Written


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Records that benchmarks write, by name; their pages go to a temporary directory."""
    found: Written = {}

    def write(name: str, record: dict[str, Any], page: str) -> None:
        found[name] = json.loads(json.dumps(record))
        (tmp_path / f"{name}.md").write_text(page)

    monkeypatch.setattr(records, "write", write)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return found


@pytest.fixture(scope="package")
def crew() -> Iterator[Crew]:
    """Two processes, shared by all tests here: each imports PyTorch."""
    with Crew(2) as pair:
        yield pair
