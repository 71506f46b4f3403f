"""Compiled blocks on actors end with the bits of compiled blocks in one process."""

from __future__ import annotations

import shutil

import pytest

from learning.networks import MLPSettings
from learning.rules import Local
from learning.settings import PrecisionSettings
from orchestrator.program import Calendar
from tests.orchestrator.engines import Case, differences, inline_engine, ray_engine, told

CALENDAR = Calendar({3: ("validation",)}, frozenset({1, 5}), {"validation": 2, "test": 3})


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_actors_end_with_the_bits_of_the_compiled_sequential_engine() -> None:
    """With dropout, which a compiled block draws in its own way, batch norm and two shards."""
    network = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)
    case = Case(
        Local(), network, at=("layer2",), shards=2, precision=PrecisionSettings(compile="inductor")
    )
    with inline_engine(case) as engine:
        expected = told(engine.train(range(6), CALENDAR))
    with ray_engine(case) as engine:
        found = told(engine.train(range(6), CALENDAR))
    assert differences(found, expected) == []
    uncompiled = Case(Local(), network, at=("layer2",), shards=2)
    with inline_engine(uncompiled) as engine:
        others = told(engine.train(range(6), CALENDAR))
    assert differences(others, expected) != []  # it was compiled: the dropout is another
