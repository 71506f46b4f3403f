"""Object stores keep the same promises as directories, and a storage has one owner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from pydantic import ValidationError

from learning.errors import UserError
from orchestrator.arrow_storage import ArrowStorage
from orchestrator.owner import claim
from orchestrator.rundir import RunDirectory
from orchestrator.storage import (
    CheckpointSettings,
    LocalStorage,
    Storage,
    absolute,
    open_storage,
    shared_storage,
)
from tests.orchestrator.bucket import Bucket, with_faults
from tests.orchestrator.checkpointing import checkpoints_in, save, seed_of
from tests.orchestrator.runs import PLAN

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(params=["local", "bucket", "directories"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return LocalStorage(tmp_path / "a" / "b")
    if request.param == "bucket":
        return Bucket().storage()
    return ArrowStorage(fs._MockFileSystem(), "a/b", "mock://a/b")


def test_all_storages_are_alike(storage: Storage) -> None:
    c = checkpoints_in(storage)
    assert (c.steps(), c.last, c.newest_valid()) == ([], None, (None, []))
    c.recover()
    for step, seed in ((1, 1), (2, 2), (2, 5), (3, 3), (4, 4)):
        save(storage, step, seed)
    c.mark(last=4, best=2, value=0.5)
    c.prune(1)
    assert c.steps() == [2, 4] and [seed_of(storage, s) for s in (2, 4)] == [5, 4]
    assert (c.last, c.best, c.best_value) == (4, 2, 0.5)
    assert set(storage.entries()) == {"", "step-00000002.1", "step-00000004"}
    storage.replace("step-00000004/block1.safetensors", b"x")
    newest, skipped = c.newest_valid()
    assert newest is not None and newest.step == 2
    assert skipped == [
        f"{storage.at('step-00000004/block1.safetensors')} has 1 bytes and should have "
        f"{c.manifest(4).files['block1'].size}: checkpoint 4 is skipped"
    ]
    storage.delete("step-00000002.1/manifest.json")
    storage.delete("step-00000002.1/manifest.json")
    assert c.steps() == [4]
    c.recover()
    assert set(storage.entries()) == {"", "step-00000004"}


def test_interrupted_replacement_in_a_bucket() -> None:
    outcomes = set()
    for bucket, dead in with_faults(lambda s: save(s, 1, 1), lambda s: save(s, 1, 2)):
        storage = bucket.storage()
        assert checkpoints_in(storage).steps() == [1]
        outcomes.add(seed := seed_of(storage, 1))
        if seed == 1 and not dead:
            assert not any("step-00000001.1" in name for name in bucket.objects)
        checkpoints_in(storage).recover()
        assert len(checkpoints_in(storage).storage.entries()) == 2 and seed_of(storage, 1) == seed
        save(storage, 1, 3)
        assert seed_of(storage, 1) == 3
    assert outcomes == {1, 2}


def test_interrupted_pruning_of_a_bucket() -> None:
    def prepare(storage: Storage) -> None:
        for step in (1, 2, 3, 4):
            save(storage, step, step)
        checkpoints_in(storage).mark(last=4, best=2, value=0.5)

    for bucket, _ in with_faults(prepare, lambda s: checkpoints_in(s).prune(1)):
        storage = bucket.storage()
        steps = checkpoints_in(storage).steps()
        assert {2, 4} <= set(steps) and [seed_of(storage, s) for s in steps] == steps
        checkpoints_in(storage).prune(1)
        assert checkpoints_in(storage).steps() == [2, 4]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "AWS Error ACCESS_DENIED\nduring PutObject"), "AWS Error ACCESS_DENI"),
        (OSError("When resolving region for bucket 'x': no such bucket"), "When resolving region"),
    ],
)
def test_a_store_that_fails_is_one_sentence(error: OSError, said: str) -> None:
    bucket = Bucket()
    storage = bucket.storage()
    save(storage, 1, 1)
    bucket.error, bucket.fail_at, bucket.dead = error, len(bucket.changes) + 3, True
    with pytest.raises(UserError) as caught:
        save(storage, 2, 2)
    text = str(caught.value)
    assert text.startswith(f"cannot write checkpoint 2 in s3://bucket/run ({said}")
    assert "\n" not in text and "what was there before is kept" in text
    bucket.fail_at = 0
    assert checkpoints_in(storage).steps() == [1] and seed_of(storage, 1) == 1
    checkpoints_in(storage).recover()
    assert set(storage.entries()) == {"", "step-00000001"}


def test_a_storage_has_one_owner(storage: Storage) -> None:
    claim(storage, "me")
    claim(storage, "me")
    with pytest.raises(UserError, match=r"another run \(me\): choose another run.name or"):
        claim(storage, "you")
    storage.delete("owner")
    save(storage, 1, 1)
    with pytest.raises(UserError, match="it has no owner file"):
        claim(storage, "you")


def test_the_run_that_was_written_over_finds_out() -> None:
    storage = Bucket().storage()
    claim(storage, "me")
    storage.replace("owner", b"you\n")  # claimed at the same moment
    with pytest.raises(UserError, match=r"another run \(you\)"):
        claim(storage, "me")


def _create(path: Path, storage: Path, **section: Any) -> RunDirectory:
    config = {"run": {"name": "n"}, "checkpoints": {"storage": f"file://{storage}", **section}}
    return RunDirectory.create(path, config=config, version={}, plan=PLAN)


def test_runs_of_one_name_do_not_share_a_storage(tmp_path: Path) -> None:
    run = _create(tmp_path / "one", tmp_path / "s")
    with pytest.raises(UserError, match="another run"):
        _create(tmp_path / "two", tmp_path / "s")
    assert not (tmp_path / "two").exists()
    with run.lock():
        save(run.checkpoints.storage, 1, 1)
    again = RunDirectory.open(tmp_path / "one")
    with again.lock():
        assert again.checkpoints.steps() == [1]
    assert sorted(os.listdir(tmp_path / "s" / "n")) == ["owner", "step-00000001"]
    (tmp_path / "s" / "n" / "owner").write_text("somebody")
    with pytest.raises(UserError, match=r"another run \(somebody\)"), again.lock():
        pass


def test_a_run_that_cannot_be_made_gives_its_claim_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(UserError, match="cannot create"):
            _create(tmp_path / "one", tmp_path / "s")
    _create(tmp_path / "one", tmp_path / "s")


@pytest.mark.parametrize("location", ["foo://x", "s3:/x", "relative", "file://host/x"])
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(UserError, match=r"cannot open checkpoints.storage = .*: give an absolute"):
        open_storage(location, "run")


def test_a_location_without_a_bucket() -> None:
    with pytest.raises(UserError, match="names no bucket or directory: give an absolute"):
        open_storage("s3://", "run")


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(None) is None and absolute("s3://b/p") == "s3://b/p"
    assert absolute("a/b") == str(tmp_path / "a" / "b")
    for location in (f"file://{tmp_path}/x", f"{tmp_path}/x"):
        assert open_storage(location, "run").at("y") == f"{tmp_path}/x/run/y"
    s3 = open_storage("s3://bucket/prefix/?region=eu-west-1", "run")
    assert s3.at("index.json") == "s3://bucket/prefix/run/index.json"
    with pytest.raises(UserError, match="run.name '../run' cannot name a file"):
        open_storage(f"file://{tmp_path}", "../run")
    with pytest.raises(ValidationError, match="holds a secret"):
        CheckpointSettings(storage="s3://key:secret@bucket/prefix")


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoints": None},
        {"checkpoints": ["s3://a"]},
        {"checkpoints": {"kind": "x"}},
        {"checkpoints": {"storage": 5}},
        {"checkpoints": {"storage": "s3://me:secret@a/b"}, "run": {"name": "a"}},
        {"checkpoints": {"storage": "/a\0b"}, "run": {"name": "a"}},
        {"checkpoints": {"storage": "/a"}},
        {"checkpoints": {"storage": "/a"}, "run": None},
        {"checkpoints": {"storage": "/a"}, "run": {"name": 5}},
        {"checkpoints": {"storage": "/a"}, "run": {"name": "../b"}},
    ],
    ids=str,
)
def test_damaged_settings_of_a_storage_are_one_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        shared_storage(settings)
    assert "\n" not in str(caught.value) and "secret@" not in str(caught.value)
