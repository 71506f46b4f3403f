"""Configurations survive being written as words or YAML, and do not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from blocklocal.config import RunConfig, dotted, known_keys, load_config, make_config
from learning.rules import Backprop, Local

SWEEP = "sweep.yaml"  # of other sections too; tests of sweeps read it
FILES = (Path(__file__).parents[2] / "examples").glob("*.yaml")
EXAMPLES = sorted(path for path in FILES if path.name != SWEEP)


def _words(config: RunConfig) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in dotted(config).items()]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"rule": {"kind": "bll", "latent": {"kind": "categorical", "states": 8}}},
        {"rule": {"kind": "bll", "feedback": {"optimizer": {"kind": "sgd", "lr": [1e-7, 2]}}}},
        {"rule": {"kind": "backprop", "order": "gpipe"}, "optimizer": {"kind": "sgd", "clip": 1}},
        {"network": {"kind": "resnet", "depths": [1, 2, 3, 4]}, "blocks": {"at": ["layer2.0"]}},
        {"network": {"kind": "custom", "factory": "a:b", "arguments": {}}},
        {"network": {"kind": "custom", "factory": "a:b", "arguments": {"n": {"m": [1, None]}}}},
        {"data": {"kind": "parquet", "train": "a b.parquet", "test": "~/é #.parquet"}},
        {"data": {"kind": "arrays", "path": "null", "augment": {"flip": True}}},
        {"run": {"name": "1e5", "directory": "true"}, "schedule": {"kind": "cosine"}},
    ],
)
def test_dotted_keys_make_the_same_configuration(tree: dict[str, object]) -> None:
    config = make_config(tree)
    assert load_config(None, _words(config)) == config


@given(
    lr=st.floats(0, 1e6),
    rates=st.none() | st.lists(st.floats(0, 1e6), min_size=1, max_size=4),
    experiment=st.text(
        st.characters(max_codepoint=0xFFFF, exclude_categories=["C", "Z"]), min_size=1
    ),
    seed=st.integers(0, 2**64 - 1),
)
def test_dotted_keys_keep_any_value(
    lr: float, rates: list[float] | None, experiment: str, seed: int
) -> None:
    config = make_config(
        {
            "optimizer": {"lr": lr if rates is None else rates},
            "tracking": {"experiment": experiment[:500], "run_name": experiment},
            "training": {"seed": seed},
        }
    )
    assert load_config(None, _words(config)) == config


def test_all_keys_are_known() -> None:
    keys = set(known_keys())
    for rule in ("backprop", "local", "bll"):
        assert set(dotted(make_config({"rule": {"kind": rule}}))) <= keys


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert make_config(load_config(path).model_dump(mode="json")) == load_config(path)


def test_there_are_examples() -> None:
    assert "digits.yaml" in [path.name for path in EXAMPLES]


def test_a_configuration_is_frozen() -> None:
    config = make_config({"rule": {"kind": "backprop"}})
    assert isinstance(config.rule, Backprop)
    with pytest.raises(ValidationError, match="frozen"):
        config.rule = Local()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.training.batch = 3  # pyright: ignore[reportAttributeAccessIssue]
