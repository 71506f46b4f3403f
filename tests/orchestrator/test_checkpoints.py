"""Checkpoints come back bit for bit, and no crash or damage turns one into garbage."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learning.errors import UserError
from orchestrator.checkpoints import Checkpoints
from orchestrator.files import child, sealed
from orchestrator.tensors import export, model_state
from tests.orchestrator.faults import with_faults

State = dict[str, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no test cuts the power, and it is slow


def make_state(seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "block1": {
            "model.0.weight": torch.randn(3, 2, generator=g),
            "optimizer.0.weight.step": torch.tensor(float(seed)),
        },
        "feedback1": {"feedback.bias": torch.randn(2, generator=g)},
        "block2": {"model.1.weight": torch.randn(2, generator=g, dtype=torch.float64)},
        "block3": {},
    }


def save(directory: Path, step: int, seed: int) -> None:
    Checkpoints(directory).save(
        step, make_state(seed), plan_hash="ab", rule={"seed": seed}, metrics={"loss": seed / 3}
    )


def same(a: State, b: State) -> bool:
    def bits(t: Tensor) -> bytes:
        return (
            t.clone(memory_format=torch.contiguous_format)
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )

    def plain(s: State) -> dict:
        return {k: {n: (t.dtype, t.shape, bits(t)) for n, t in ts.items()} for k, ts in s.items()}

    return plain(a) == plain(b)


def seed_of(directory: Path, step: int) -> int:
    """Load and verify that it is wholly the checkpoint of one seed; returns the seed."""
    c = Checkpoints(directory).load(step)
    seed = c.rule["seed"]
    assert same(c.state, make_state(seed))
    assert (c.step, c.plan_hash, c.metrics) == (step, "ab", {"loss": seed / 3})
    return seed


def hidden(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


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


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=5), tensors(), max_size=4), st.booleans())
def test_round_trip_bit_for_bit(state: dict[str, Tensor], shared: bool) -> None:
    if shared:
        state |= {f"{n}.again": t for n, t in state.items()}
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name))
        checkpoints.save(7, {"block1": state}, plan_hash="", rule={}, metrics=None)
        assert same(checkpoints.load(7).state, {"block1": state})


def test_layout_and_manifest(tmp_path: Path) -> None:
    rule = {"name": "bll", "betas": (0.9, 0.999), "by": {10: "a", 2: "b"}}
    c = Checkpoints(tmp_path / "checkpoints")
    path = c.save(50, make_state(1), plan_hash="ab", rule=rule, metrics=None)
    assert path == tmp_path / "checkpoints" / "step-00000050"
    names = ["block1.safetensors", "block2.safetensors", "block3.safetensors"]
    assert sorted(os.listdir(path)) == [*names, "feedback1.safetensors", "manifest.json"]
    loaded = c.load(50)
    assert loaded.rule == {"name": "bll", "betas": [0.9, 0.999], "by": {"10": "a", "2": "b"}}
    assert loaded.metrics is None and c.manifest(50).files["block1"].name == names[0]
    c.save(123456789, {}, plan_hash="", rule={}, metrics={})
    assert c.steps() == [50, 123456789] and c.load(123456789).state == {}


def test_everything_is_durable_before_it_is_renamed(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    rename = os.rename

    def traced_fsync(fd: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))

    def traced_rename(a: Path, b: Path) -> None:
        events.append(("rename", f"{a.name} {b.name}"))
        rename(a, b)

    save(tmp_path, 1, 1)
    with mock.patch("os.fsync", traced_fsync), mock.patch("os.rename", traced_rename):
        save(tmp_path, 1, 2)
    files = [("fsync", f"{name}.safetensors") for name in make_state(1)]
    step, parent = "step-00000001", ("fsync", tmp_path.name)
    assert events == [
        *(*files, ("fsync", "manifest.json"), ("fsync", f".new-{step}")),
        *(("rename", f"{step} .old-{step}"), ("rename", f".new-{step} {step}"), parent),
        *(("rename", f".old-{step} .trash-{step}"), parent),
    ]


def test_interrupted_save_of_a_new_step(tmp_path: Path) -> None:
    outcomes = set()
    for d, _ in with_faults(tmp_path, lambda d: save(d, 1, 1), lambda d: save(d, 2, 2)):
        outcomes.add(tuple(Checkpoints(d).steps()))
        assert seed_of(d, 1) == 1
        if 2 in Checkpoints(d).steps():
            assert seed_of(d, 2) == 2
        before = Checkpoints(d).steps()
        Checkpoints(d).recover()
        assert not hidden(d) and Checkpoints(d).steps() == before
        save(d, 2, 3)
        assert seed_of(d, 2) == 3 and seed_of(d, 1) == 1
    assert outcomes == {(1,), (1, 2)}


@pytest.mark.parametrize("recover", [True, False])
def test_interrupted_replacement(tmp_path: Path, recover: bool) -> None:
    outcomes = set()
    for d, _ in with_faults(tmp_path, lambda d: save(d, 1, 1), lambda d: save(d, 1, 2)):
        assert Checkpoints(d).steps() == [1]  # even before anything is recovered
        seed = seed_of(d, 1)
        outcomes.add(seed)
        if recover:
            Checkpoints(d).recover()
            assert not hidden(d) and seed_of(d, 1) == seed
        save(d, 1, 3)
        assert not hidden(d) and seed_of(d, 1) == 3
    assert outcomes == {1, 2}


def test_interrupted_recovery(tmp_path: Path) -> None:
    def crashed(d: Path) -> None:
        save(d, 1, 1)
        shutil.copytree(d / "step-00000001", d / ".old-step-00000001")
        save(d, 2, 2)
        (d / "step-00000002").rename(d / ".old-step-00000002")
        save(d, 3, 3)
        (d / "step-00000003").rename(d / ".new-step-00000003")

    for d, _ in with_faults(tmp_path, crashed, lambda d: Checkpoints(d).recover()):
        assert [seed_of(d, s) for s in Checkpoints(d).steps()] == [1, 2]
        Checkpoints(d).recover()
        assert sorted(os.listdir(d)) == ["step-00000001", "step-00000002"]


def test_interrupted_mark(tmp_path: Path) -> None:
    def prepare(d: Path) -> None:
        save(d, 1, 1)
        save(d, 2, 2)
        Checkpoints(d).mark(last=1, best=1, value=0.5)

    for d, _ in with_faults(
        tmp_path, prepare, lambda d: Checkpoints(d).mark(last=2, best=2, value=9)
    ):
        c = Checkpoints(d)
        assert (c.last, c.best, c.best_value) in [(1, 1, 0.5), (2, 2, 9.0)]
        c.recover()
        assert not hidden(d)
        c.mark(best=2, value=8)
        assert (c.best, c.best_value) == (2, 8.0)


def test_interrupted_prune(tmp_path: Path) -> None:
    def prepare(d: Path) -> None:
        for step in (1, 2, 3, 4):
            save(d, step, step)
        Checkpoints(d).mark(last=4, best=2, value=0.5)

    for d, _ in with_faults(tmp_path, prepare, lambda d: Checkpoints(d).prune()):
        steps = Checkpoints(d).steps()
        assert {2, 4} <= set(steps) and [seed_of(d, s) for s in steps] == steps
        Checkpoints(d).recover()
        assert not hidden(d) and Checkpoints(d).steps() == steps
        Checkpoints(d).prune()
        assert sorted(os.listdir(d)) == ["index.json", "step-00000002", "step-00000004"]


@pytest.mark.parametrize("links", [True, False])
def test_interrupted_export(tmp_path: Path, links: bool) -> None:
    def act(d: Path) -> None:
        with mock.patch("os.link", os.link if links else mock.Mock(side_effect=OSError(1, "no"))):
            export(make_state(1), d / "model.safetensors")

    for d, _ in with_faults(tmp_path, lambda d: None, act):
        path = d / "model.safetensors"
        if path.exists():
            assert same({"": safetensors.torch.load_file(path)}, {"": model_state(make_state(1))})
        else:
            act(d)
            assert os.listdir(d) == ["model.safetensors"]


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    ours = [".new-step-00000002", ".trash-step-00000003"]
    others = [".new-step-2", ".new-step-000000020", "notes", ".old-notes", "step-00000009"]
    for name in ours + others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".new-step-00000005").touch()  # not a directory: not ours
    Checkpoints(tmp_path).recover()
    expected = {*others, "step-00000001", ".new-step-00000005"}
    assert set(os.listdir(tmp_path)) == expected
    assert Checkpoints(tmp_path).steps() == [1]  # step 9 has no manifest


@pytest.mark.parametrize("name", ["manifest.json", "block1.safetensors"])
def test_flipped_bits_are_noticed(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    save(tmp_path, 1, 1)
    path = tmp_path / "step-00000001" / name
    good = path.read_bytes()
    noticed, tried = 0, range(0, len(good), 3)
    for i in tried:
        bad = bytearray(good)
        bad[i] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            assert seed_of(tmp_path, 1) == 1  # e.g. 1E-3 for 1e-3 in JSON
        except UserError as error:
            noticed += str(path) in str(error) and str(error).endswith("start a new run")
    assert noticed == len(tried) if name != "manifest.json" else noticed > 0.9 * len(tried)


@pytest.mark.parametrize("name", ["manifest.json", "block1.safetensors", "block3.safetensors"])
def test_truncated_and_missing_files(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1, 1)
    save(tmp_path, 2, 2)
    path = tmp_path / "step-00000001" / name
    good = path.read_bytes()
    for size in range(0, len(good.rstrip()), 5):
        path.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"choose one of the steps 2$") as caught:
            Checkpoints(tmp_path).load(1)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        Checkpoints(tmp_path).load(1)


def _edit(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_bytes(sealed({**data, **changes}))


def test_foreign_files(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    one, two = tmp_path / "step-00000001", tmp_path / "step-00000002"
    shutil.copytree(one, two)
    with pytest.raises(UserError, match="is of step 1, not of step 2"):
        Checkpoints(tmp_path).load(2)
    save(tmp_path, 2, 2)
    shutil.copy(one / "block2.safetensors", two)
    with pytest.raises(UserError, match=r"step-00000002/block2.safetensors is damaged"):
        Checkpoints(tmp_path).load(2)
    (one / ".DS_Store").touch()
    assert seed_of(tmp_path, 1) == 1
    (one / "block9.safetensors").touch()
    with pytest.raises(UserError, match=r"block9.safetensors is not listed .* move it away"):
        Checkpoints(tmp_path).load(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"format version 2, this blocklocal reads 1: use the version"),
        ({"format": "1"}, "format version '1'"),
        ({"step": -1}, "not a manifest"),
        ({"colour": 1}, "not a manifest"),
        ({"files": {"a": {"name": "../a", "size": 0, "sha256": ""}}}, "names a file '../a'"),
        ({"files": {"../a": {"name": "../a.safetensors", "size": 0, "sha256": ""}}}, "cannot name"),
    ],
)
def test_foreign_manifests(tmp_path: Path, changes: dict, message: str) -> None:
    save(tmp_path, 1, 1)
    _edit(tmp_path / "step-00000001", **changes)
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).load(1)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_something_else(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 1)
    (tmp_path / "step-00000001" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest.json is (damaged|not a file of blocklocal)"):
        Checkpoints(tmp_path).load(1)


def test_not_safetensors_but_as_listed(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    path = tmp_path / "step-00000001"
    (path / "a.safetensors").write_bytes(b"x" * 20)
    digest = hashlib.sha256(b"x" * 20).hexdigest()
    _edit(path, files={"a": {"name": "a.safetensors", "size": 20, "sha256": digest}})
    for name in make_state(1):
        (path / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match=r"a.safetensors is not a safetensors file"):
        Checkpoints(tmp_path).load(1)


def test_refused_saves_leave_nothing(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path)
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
    c = Checkpoints(tmp_path / "none")
    assert (c.last, c.best, c.best_value, c.steps()) == (None, None, None, [])
    c.prune()
    for which in ("last", "best", 3, "3"):
        with pytest.raises(UserError, match=rf"no checkpoint {which} in .*: start a new run"):
            c.resolve(which)
    c = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        save(tmp_path, step, step)
    c.mark(best=10, value=0.25)
    c.prune()
    assert c.steps() == [10, 30]  # the newest stays as long as no last one is marked
    c.mark(last=30)
    assert (c.resolve("last"), c.resolve("best"), c.resolve("10"), c.resolve(30)) == (
        30,
        10,
        10,
        30,
    )
    assert Checkpoints(tmp_path).best_value == 0.25
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


def test_model_state_and_export(tmp_path: Path) -> None:
    state, path = make_state(1), tmp_path / "model.safetensors"
    merged = model_state(state)
    assert list(merged) == ["0.weight", "1.weight"]
    assert merged["1.weight"] is state["block2"]["model.1.weight"]
    export(state, path)
    assert same({"": safetensors.torch.load_file(path)}, {"": merged})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"model.safetensors exists: .*another"):
        export(make_state(2), path)
    # A file that appears while the tensors are being encoded is not overwritten either.
    with (
        mock.patch("os.path.lexists", return_value=False),
        pytest.raises(UserError, match="exists"),
    ):
        export(make_state(2), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with pytest.raises(UserError, match="cannot write"):
        export(state, tmp_path / "none" / "model.safetensors")
    state["block9"] = {"model.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"0.weight is in block1 and in block9"):
        model_state(state)
