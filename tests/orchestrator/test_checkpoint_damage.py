"""Damage is noticed and named, and never read as a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from learning.errors import UserError
from orchestrator.files import sealed
from orchestrator.tensor_files import decode_tensors
from tests.orchestrator.checkpointing import (
    checkpoints_in,
    make_state,
    save,
    seed_of,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


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
            checkpoints_in(tmp_path).load(1)
        assert str(path) in str(caught.value)
    path.unlink()
    gone = "there is no checkpoint 1 " if name == "manifest.json" else "cannot read .*No such file"
    with pytest.raises(UserError, match=gone):
        checkpoints_in(tmp_path).load(1)


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
        checkpoints_in(tmp_path).load(2)
    shutil.rmtree(two)
    save(tmp_path, 2, 2)
    shutil.copy(one / "block2.safetensors", two)
    with pytest.raises(UserError, match=r"step-00000002/block2.safetensors is damaged"):
        checkpoints_in(tmp_path).load(2)
    (one / ".DS_Store").touch()
    assert seed_of(tmp_path, 1) == 1
    (one / "block9.safetensors").touch()
    with pytest.raises(UserError, match=r"block9.safetensors is not listed .* move it away"):
        checkpoints_in(tmp_path).load(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, r"format version 4, this blocklocal reads 1 and 2 and 3: use the version"),
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
        checkpoints_in(tmp_path).load(1)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_something_else(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 1)
    (tmp_path / "step-00000001" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest.json is (damaged|not a file of blocklocal)"):
        checkpoints_in(tmp_path).load(1)


def test_not_safetensors_but_as_listed(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    path = tmp_path / "step-00000001"
    (path / "a.safetensors").write_bytes(b"x" * 20)
    digest = hashlib.sha256(b"x" * 20).hexdigest()
    _edit(path, files={"a": {"name": "a.safetensors", "size": 20, "sha256": digest}})
    for name in make_state(1):
        (path / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match=r"a.safetensors is not a safetensors file"):
        checkpoints_in(tmp_path).load(1)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["block1.safetensors", "feedback1.safetensors", "manifest.json"])
def test_the_newest_valid_one(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, step)
    c = checkpoints_in(tmp_path)
    path = tmp_path / "step-00000003" / name
    harm(path)
    newest, skipped = c.newest_valid()
    assert newest is not None and newest.step == 4 and skipped == []
    newest, skipped = c.newest_valid(at_most=3)
    assert newest is not None and newest.step == newest.rule["seed"] == 2
    if name == "manifest.json" and not path.exists():
        assert skipped == []  # it was never finished
    else:
        assert len(skipped) == 1 and str(path) in skipped[0]
        assert skipped[0].endswith(": checkpoint 3 is skipped")


def test_nothing_valid_is_nothing(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path).newest_valid() == (None, [])
    save(tmp_path, 1, 1)
    _flip(tmp_path / "step-00000001" / "block2.safetensors")
    newest, skipped = checkpoints_in(tmp_path).newest_valid()
    assert newest is None and len(skipped) == 1


def test_what_cannot_be_reached_is_not_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    denied = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    with mock.patch("os.open", denied), pytest.raises(UserError, match="denied"):
        checkpoints_in(tmp_path).newest_valid()


@pytest.mark.parametrize("linked", ["step-00000002", "step-00000002.1"])
def test_a_directory_that_is_a_link_is_not_written_through(tmp_path: Path, linked: str) -> None:
    """Whoever made a run's directory may have put links where the next checkpoints will be."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "manifest.json").write_text("mine")
    c = tmp_path / "c"
    save(c, 1, 1)
    if linked.endswith(".1"):
        save(c, 2, 2)
    (c / linked).symlink_to(theirs)
    with pytest.raises(UserError, match="its directory is a symbolic link"):
        save(c, 2, 3)
    assert {p.name: p.read_text() for p in theirs.iterdir()} == {"manifest.json": "mine"}
    assert seed_of(c, 1) == 1


@pytest.mark.parametrize("name", ["manifest.json", "block1.safetensors"])
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, name: str) -> None:
    """A file with a hole claims a terabyte and takes none."""
    save(tmp_path, 1, 1)
    save(tmp_path, 2, 2)
    os.truncate(tmp_path / "step-00000002" / name, 2**40)
    with pytest.raises(UserError, match=rf"it has {2**40} bytes, more than "):
        checkpoints_in(tmp_path).load(2)
    found, skipped = checkpoints_in(tmp_path).newest_valid()
    assert found is not None and found.step == 1 and len(skipped) == 1


def test_a_file_that_does_not_fit_into_memory_is_one_sentence(tmp_path: Path) -> None:
    """Even where the manifest agrees, as that of a stranger may."""
    save(tmp_path, 1, 1)
    path = tmp_path / "step-00000001/block1.safetensors"
    size = path.stat().st_size
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    del content["sha256"]
    content["files"]["block1"]["size"] = 2**50
    assert size < 2**50
    manifest.write_bytes(sealed(content, content.pop("format")))
    os.truncate(path, 2**43)  # as much as file systems give
    with pytest.raises(UserError, match="do not fit into memory"):
        checkpoints_in(tmp_path).load(1)


def test_an_index_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    checkpoints_in(tmp_path).mark(last=1)
    os.truncate(tmp_path / "index.json", 2**40)
    with pytest.raises(UserError, match="more than"):
        _ = checkpoints_in(tmp_path).last


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F8_E8M0"])
def test_types_that_torch_does_not_read_are_damage(kind: str) -> None:
    head = json.dumps({"a": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}})
    bits = {"F4": 2, "F6_E2M3": 3, "F8_E8M0": 4}[kind]
    head = head.replace("[0, 4]", f"[0, {bits}]")
    data = len(head).to_bytes(8, "little") + head.encode() + bytes(bits)
    with pytest.raises(UserError, match=f"a tensor of type {kind}"):
        decode_tensors(data, len(data), {}, "block1.safetensors", "start a new run")
