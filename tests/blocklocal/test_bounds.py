"""Every number of every setting is strict and has limits; every text and list has an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from blocklocal.compare.study import Study
from blocklocal.config import RunConfig, load_config, make_config
from blocklocal.setting_models import models_in
from blocklocal.sweep_file import make_settings
from learning.errors import UserError
from orchestrator.clusters import ClusterDescription
from tests.docs.ranges import leaves, limits, of_field
from tuning.settings import SweepSettings

MODELS: tuple[type[BaseModel], ...] = (RunConfig, SweepSettings, ClusterDescription, Study)
FREE = {"bandwidth"}
"""Where infinity has a meaning: a way that costs nothing."""


def all_leaves(model: type[BaseModel]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(key, type, what is said of it) of every value that a tree of settings may hold."""
    for name, info in model.model_fields.items():
        for inner in models_in(info.annotation):
            yield from all_leaves(inner)
        for kind, said in of_field(info):
            yield name, kind, said
            for member in get_args(kind) if get_origin(kind) is tuple else ():
                yield from ((name, *leaf) for leaf in leaves(member) if member is not Ellipsis)


LEAVES = [leaf for model in MODELS for leaf in all_leaves(model)]


def test_numbers_are_strict_and_have_limits() -> None:
    seen = 0
    for key, kind, said in LEAVES:
        if kind not in (int, float, bool):
            continue
        seen += 1
        assert any(getattr(one, "strict", False) for one in said), key
        found = limits(said)
        if kind is not bool and key not in FREE:
            assert {"ge", "gt"} & found.keys() and {"le", "lt"} & found.keys(), key
    assert seen > 150


def test_texts_and_lists_have_an_end() -> None:
    for key, kind, said in LEAVES:
        endless = kind is str or (get_origin(kind) is tuple and Ellipsis in get_args(kind))
        if endless:
            assert any(hasattr(one, "max_length") for one in said), key


def test_there_is_no_other_kind_of_value() -> None:
    known = {int, float, bool, str, type(None), Path, tuple, dict, Literal}
    for key, kind, _ in LEAVES:
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        assert is_section or kind in known or get_origin(kind) in known or key == "arguments", key


@pytest.mark.parametrize("value", [True, "3", "yes", 2.5, None, [3], float("nan"), 1e300, -1, 0])
def test_a_whole_number_takes_nothing_else(value: object) -> None:
    with pytest.raises(UserError, match=r"training\.batch = .* is not possible: input should be"):
        make_config({"training": {"batch": value}})


@pytest.mark.parametrize("value", [True, "3", "0.1", float("inf"), float("nan"), 1e300, 10**400])
def test_a_rate_takes_nothing_else(value: object) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr = .* is not possible: input should be"):
        make_config({"optimizer": {"lr": value}})


@pytest.mark.parametrize("value", [1, 0, 1.0, "yes", "true", None])
def test_a_switch_takes_true_and_false_only(value: object) -> None:
    with pytest.raises(UserError, match=r"tracking\.enabled = .* is not possible"):
        make_config({"tracking": {"enabled": value}})


def test_whole_numbers_in_other_clothes() -> None:
    config = load_config(None, ["training.steps=1e3", "training.batch=0x20", "training.epochs=3"])
    assert (config.training.steps, config.training.batch) == (1000, 32)
    assert type(config.training.steps) is int and type(config.training.epochs) is float
    given = make_config({"training": {"batch": np.int64(8)}, "optimizer": {"lr": np.float32(0.5)}})
    assert type(given.training.batch) is int and type(given.optimizer.lr) is float


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.directory=" + "d" * 300], "run.directory: the path 'dddd"),
        (["run.directory=" + "d/" * 3000], "run.directory: the path 'd/d/"),
        (['run.directory="a\\0b"'], r"run.directory: 'a\x00b' has characters that cannot be"),
        (["run.directory=''"], "run.directory: an empty path is no place: give a path"),
        (["run.name=" + "n" * 245], "run.name = 'nnnn"),
        (["run.name=a/b"], "run.name = 'a/b' is not possible"),
        (['tracking.experiment="a\\nb"'], r"tracking.experiment: 'a\nb' has characters that"),
        (["data.kind=arrays", 'data.path="\\0"'], r"data.path: '\x00' has characters that"),
        (["network.widths=[" + "1," * 2000 + "]"], "network.widths = [1, 1, "),
        (["blocks.at=[" + "u" * 300 + "]"], "blocks.at.0 = 'uuu"),
        (["training.steps=" + "9" * 299], "training.steps = an integer of "),
        (["a" * 90_000 + "=1"], "unknown setting aaaa"),
        (["a." * 90_000 + "b=1"], "'a.a.a.a.a."),
        (["x" * 90_000], "'xxxx"),
        (["rule.kind=" + "k" * 90_000], "rule.kind = 'kkkk"),
        (["rule.kind=[[[[]]]]"], "rule.kind = '[[[[]]]]' is unknown: use one of"),
        (["rule.kind={a: 1}"], "rule.kind = \"{'a': 1}\" is unknown: use one of"),
    ],
)
def test_long_and_odd_texts_are_told_shortly(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, words)
    text = str(caught.value)
    assert text.startswith(said), text
    assert len(text) < 500 and text.isprintable(), text


def test_a_sweep_is_as_strict() -> None:
    for tree in ({"trials": True}, {"trials": "8"}, {"stop": {"value": float("inf")}}):
        with pytest.raises(UserError, match="is not possible"):
            make_settings(tree)
    with pytest.raises(ValidationError, match="valid number"):
        ClusterDescription(speed=True)
