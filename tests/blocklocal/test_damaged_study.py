"""Records of a study: a report reads what is in one right, or one sentence says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocklocal.compare.records import Records, check_directory
from blocklocal.compare.report import _costs, _made
from blocklocal.compare.summary import _agreement, _row, metric_of, value_of
from blocklocal.compare.summary import _made as made_of
from learning.errors import MOST, UserError
from tests.damage import DAMAGE, How

STUDY = Path(__file__).parents[2] / "benchmarks/results/cifar10"
WRONG = (None, True, -1, 10**400, 1e400, "x", [], ["x"], [None], {}, {"x": []}, [{"a": "b"}])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A run and its costs, of the study in the README."""
    for kind in ("runs", "costs"):
        (tmp_path / kind).mkdir()
        first = sorted((STUDY / kind).glob("*.json"))[0]
        record = json.loads(first.read_bytes())
        if kind == "runs":
            record["curve"] = record["curve"][:2]
        (tmp_path / kind / "one.json").write_text(json.dumps(record))
    return tmp_path


def read(study: Path) -> None:
    """All that a report does with what a record says."""
    for run in Records(study, "runs").held.values():
        value_of(run, "test", metric_of([run], "auto"))
        _made(made_of([run])[0])
        _agreement([run])
    for costs in Records(study, "costs").held.values():
        _costs(_row("rule", {}, [], costs, None))


def wrongly(record: Any, depth: int = 3) -> Iterator[None]:
    """The record with each of its values replaced by each wrong one, and without it."""
    keys = list(record) if isinstance(record, dict) else range(len(record))
    for key in [*keys][:12]:
        value = record[key]
        if depth and isinstance(value, dict | list):
            yield from wrongly(value, depth - 1)
        for wrong in WRONG:
            record[key] = copy.deepcopy(wrong)
            yield
        if isinstance(record, dict):
            del record[key]
            yield
        record[key] = value


def tell(study: Path) -> int:
    try:
        read(study)
    except UserError as error:
        text = str(error)
        assert len(text) <= MOST and text.isprintable(), text
        return 1
    return 0


@pytest.mark.parametrize("kind", ["runs", "costs"])
def test_any_wrong_value_is_told_or_does_not_matter(study: Path, kind: str) -> None:
    assert not tell(study)
    path, told, number = study / kind / "one.json", 0, 0
    record = json.loads(path.read_bytes())
    record["settings"] = {}  # which another reader minds
    for _ in wrongly(record):
        path.write_text(json.dumps(record))
        told += tell(study)
        number += 1
    assert number > 250 and told > 100, (number, told)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_record_is_told(study: Path, how: How) -> None:
    others = [(study / "costs/one.json").read_bytes()]
    assert sum(tell(study) for _ in how(study / "runs/one.json", others))


def test_damaged_results_are_written_anew(study: Path) -> None:
    for content in ("[" * 100_000, "[]", "{", "", "\0"):
        (study / "results.json").write_text(content)
        check_directory(study, "cifar10")


def test_a_loss_beyond_any_perplexity_is_told() -> None:
    with pytest.raises(UserError, match="test loss of 1000, whose perplexity is beyond"):
        value_of({"metrics": {"test/block1/loss": 1000.0}}, "test", "perplexity")
