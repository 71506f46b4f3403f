"""Checkpoints come back bit for bit, the last and the best are known, and old ones go."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learning.data import Preprocessing
from learning.errors import UserError
from orchestrator.files import child
from tests.orchestrator.checkpointing import (
    checkpoints_in,
    make_state,
    same,
    save,
    seed_of,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DTYPES += [torch.int64, torch.int8, torch.uint8]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel() * dtype.itemsize  # any bits: NaN payloads, -0.0, ...
    raw = draw(st.binary(min_size=count, max_size=count))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0).byte()
    tensor = flat.view(dtype).reshape(shape)
    how = draw(st.sampled_from(["as is", "transposed", "expanded", "sliced"]))
    if how == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, 1)
    if how == "sliced" and tensor.ndim:
        return tensor[::2]
    return tensor.expand(3, *tensor.shape) if how == "expanded" else tensor


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), tensors(), max_size=4), st.booleans())
def test_round_trip_bit_for_bit(state: dict[str, Tensor], shared: bool) -> None:
    if shared:
        state |= {f"{n}.again": t for n, t in state.items()}
    with tempfile.TemporaryDirectory() as name:
        checkpoints = checkpoints_in(Path(name))
        checkpoints.save(7, {"block1": state}, plan_hash="", rule={}, metrics=None)
        assert same(checkpoints.load(7).state, {"block1": state})


def test_layout_and_manifest(tmp_path: Path) -> None:
    rule = {"name": "bll", "betas": (0.9, 0.999), "by": {10: "a", 2: "b"}}
    c = checkpoints_in(tmp_path / "checkpoints")
    path = c.save(50, make_state(1), plan_hash="ab", rule=rule, metrics=None)
    assert path == str(tmp_path / "checkpoints" / "step-00000050")
    names = ["block1.safetensors", "block2.safetensors", "block3.safetensors"]
    assert sorted(os.listdir(path)) == [*names, "feedback1.safetensors", "manifest.json"]
    loaded = c.load(50)
    assert loaded.rule == {"name": "bll", "betas": [0.9, 0.999], "by": {"10": "a", "2": "b"}}
    assert loaded.metrics is None and c.manifest(50).files["block1"].name == names[0]
    c.save(123456789, {}, plan_hash="", rule={}, metrics={})
    assert c.steps() == [50, 123456789] and c.load(123456789).state == {}


def test_preprocessing_is_a_part_of_a_checkpoint(tmp_path: Path) -> None:
    numbers = {"scale": (255.0,), "mean": (0.1, 1 / 3), "std": (2.0**-30, 7e-9)}
    known = Preprocessing(rows="uint8", input_shape=(2, 4, 4), classes=3, **numbers)
    c = checkpoints_in(tmp_path)
    c.save(1, make_state(1), plan_hash="", rule={}, metrics=None, preprocessing=known)
    c.save(2, make_state(1), plan_hash="", rule={}, metrics=None)
    assert c.load(1).preprocessing == c.manifest(1).preprocessing == known
    assert c.load(2).preprocessing is None


def test_refused_saves_leave_nothing(tmp_path: Path) -> None:
    c = checkpoints_in(tmp_path)
    for metrics in ({"loss": float("nan")}, {"loss": float("inf")}):
        with pytest.raises(ValueError):
            c.save(1, {}, plan_hash="", rule={}, metrics=metrics)
    with pytest.raises(ValueError):
        c.save(1, {}, plan_hash="", rule={"lr": float("nan")}, metrics=None)
    with pytest.raises(ValueError):
        c.save(-1, {}, plan_hash="", rule={}, metrics=None)
    for name in ("../block1", "a/b", "/a", "", ".", ".hidden", "a\n", "a\0", "x" * 200):
        with pytest.raises(UserError, match="cannot name a file"):
            c.save(1, {name: {}}, plan_hash="", rule={}, metrics=None)
        with pytest.raises(UserError):
            child(tmp_path, name)
    assert os.listdir(tmp_path) == []
    assert child(tmp_path, "run-1.b") == tmp_path / "run-1.b"


def test_last_and_best(tmp_path: Path) -> None:
    c = checkpoints_in(tmp_path / "none")
    assert (c.last, c.best, c.best_value, c.steps()) == (None, None, None, [])
    c.prune()
    for which in ("last", "best", 3, "3"):
        with pytest.raises(UserError, match=rf"no checkpoint {which} in .*: start a new run"):
            c.resolve(which)
    c = checkpoints_in(tmp_path)
    for step in (10, 20, 30):
        save(tmp_path, step, step)
    c.mark(best=10, value=0.25)
    c.prune(1)
    assert c.steps() == [10, 30]  # the newest stays as long as no last one is marked
    c.mark(last=30)
    assert (c.resolve("last"), c.resolve("best"), c.resolve("10"), c.resolve(30)) == (
        30,
        10,
        10,
        30,
    )
    assert checkpoints_in(tmp_path).best_value == 0.25
    for last, best, value in ((40, None, None), (None, 40, 1.0)):
        with pytest.raises(UserError, match=r"no checkpoint 40 .*one of the steps 10, 30"):
            c.mark(last=last, best=best, value=value)
    for best, value in ((10, None), (None, 1.0), (30, float("nan"))):
        with pytest.raises(ValueError):
            c.mark(best=best, value=value)
    assert (c.last, c.best) == (30, 10)
    for which in ("first", "-1", "1.0", "१"):
        with pytest.raises(UserError, match="choose last, best or a step"):
            c.resolve(which)
    shutil.rmtree(tmp_path / "step-00000030")
    with pytest.raises(UserError, match=r"no checkpoint last \(step 30\)"):
        c.resolve("last")
    with pytest.raises(UserError, match=r"no checkpoint 30 in .*: choose one of the steps 10$"):
        c.load(30)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json is damaged .*: delete it and choose"):
        c.resolve("last")
    assert c.resolve(10) == 10  # a damaged index costs no checkpoint


@pytest.mark.parametrize(("keep", "kept"), [(1, [2, 5]), (2, [2, 4, 5]), (3, [2, 3, 4, 5])])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, kept: list[int]) -> None:
    c = checkpoints_in(tmp_path)
    for step in range(1, 8):
        save(tmp_path, step, step)
    c.mark(last=5, best=2, value=0.5)
    c.prune(keep)  # 6 and 7 are of a past that training went back on
    assert c.steps() == kept


def test_a_step_is_replaced_again_and_again(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        save(tmp_path, 1, seed)
        assert seed_of(tmp_path, 1) == seed and checkpoints_in(tmp_path).steps() == [1]
    assert os.listdir(tmp_path) == ["step-00000001.2"]
