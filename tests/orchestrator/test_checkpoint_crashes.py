"""A crash or a failing disk at any call leaves the old or the new checkpoint whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from learning.errors import UserError
from tests.orchestrator.checkpointing import (
    checkpoints_in,
    leftovers,
    make_state,
    save,
    seed_of,
)
from tests.orchestrator.faults import with_faults

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_everything_is_durable_before_the_manifest_and_before_the_old_one_goes(
    tmp_path: Path,
) -> None:
    events: list[tuple[str, str]] = []
    replace, unlink = os.replace, os.unlink

    def traced_fsync(fd: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))

    def traced_replace(a: Path, b: Path) -> None:
        events.append(("replace", b.name))
        replace(a, b)

    def traced_unlink(path: Path, **options: int) -> None:
        if os.path.basename(path) == "manifest.json":
            events.append(("unlink", path.parent.name))
        unlink(path, **options)

    save(tmp_path, 1, 1)
    with (
        mock.patch("os.fsync", traced_fsync),
        mock.patch("os.replace", traced_replace),
        mock.patch("os.unlink", traced_unlink),
    ):
        save(tmp_path, 1, 2)
    files = [("fsync", f"{name}.safetensors") for name in make_state(1)]
    old, new = "step-00000001", "step-00000001.1"
    assert events == [
        *(("fsync", tmp_path.name), *files, ("fsync", new)),
        *(("fsync", ".manifest.json.new"), ("replace", "manifest.json"), ("fsync", new)),
        *(("unlink", old), ("fsync", old)),
    ]
    assert os.listdir(tmp_path) == [new]


def test_interrupted_save_of_a_new_step(tmp_path: Path) -> None:
    outcomes = set()
    for d, _ in with_faults(tmp_path, lambda d: save(d, 1, 1), lambda d: save(d, 2, 2)):
        outcomes.add(tuple(checkpoints_in(d).steps()))
        assert seed_of(d, 1) == 1
        if 2 in checkpoints_in(d).steps():
            assert seed_of(d, 2) == 2
        before = checkpoints_in(d).steps()
        checkpoints_in(d).recover()
        assert not leftovers(d) and checkpoints_in(d).steps() == before
        save(d, 2, 3)
        assert seed_of(d, 2) == 3 and seed_of(d, 1) == 1
    assert outcomes == {(1,), (1, 2)}


@pytest.mark.parametrize("recover", [True, False])
def test_interrupted_replacement(tmp_path: Path, recover: bool) -> None:
    outcomes = set()
    for d, _ in with_faults(tmp_path, lambda d: save(d, 1, 1), lambda d: save(d, 1, 2)):
        assert checkpoints_in(d).steps() == [1]  # even before anything is recovered
        seed = seed_of(d, 1)
        outcomes.add(seed)
        if recover:
            checkpoints_in(d).recover()
            assert not leftovers(d) and seed_of(d, 1) == seed
        save(d, 1, 3)
        assert not leftovers(d) and seed_of(d, 1) == 3
    assert outcomes == {1, 2}


def test_interrupted_recovery(tmp_path: Path) -> None:
    def crashed(d: Path) -> None:
        save(d, 1, 9)
        shutil.copytree(d / "step-00000001", d / "old")
        save(d, 1, 1)
        (d / "old").rename(d / "step-00000001")  # replaced, and not yet deleted
        save(d, 2, 2)
        save(d, 3, 3)
        (d / "step-00000003" / "manifest.json").unlink()

    for d, _ in with_faults(tmp_path, crashed, lambda d: checkpoints_in(d).recover()):
        assert [seed_of(d, s) for s in checkpoints_in(d).steps()] == [1, 2]
        checkpoints_in(d).recover()
        assert sorted(os.listdir(d)) == ["step-00000001.1", "step-00000002"]


def test_interrupted_mark(tmp_path: Path) -> None:
    def prepare(d: Path) -> None:
        save(d, 1, 1)
        save(d, 2, 2)
        checkpoints_in(d).mark(last=1, best=1, value=0.5)

    for d, _ in with_faults(
        tmp_path, prepare, lambda d: checkpoints_in(d).mark(last=2, best=2, value=9)
    ):
        c = checkpoints_in(d)
        assert (c.last, c.best, c.best_value) in [(1, 1, 0.5), (2, 2, 9.0)]
        c.recover()
        assert not leftovers(d)
        c.mark(best=2, value=8)
        assert (c.best, c.best_value) == (2, 8.0)


def test_interrupted_prune(tmp_path: Path) -> None:
    def prepare(d: Path) -> None:
        for step in (1, 2, 3, 4):
            save(d, step, step)
        checkpoints_in(d).mark(last=4, best=2, value=0.5)

    for d, _ in with_faults(tmp_path, prepare, lambda d: checkpoints_in(d).prune(1)):
        steps = checkpoints_in(d).steps()
        assert {2, 4} <= set(steps) and [seed_of(d, s) for s in steps] == steps
        checkpoints_in(d).recover()
        assert not leftovers(d) and checkpoints_in(d).steps() == steps
        checkpoints_in(d).prune(1)
        assert sorted(os.listdir(d)) == ["index.json", "step-00000002", "step-00000004"]


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    ours = ["step-00000002", "step-00000001.7"]
    others = ["step-2", "step-000000020", "notes", "step-00000003.0", ".step-00000004", "step-x"]
    for name in ours + others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / "step-00000005").touch()  # not a directory: not ours
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "step-00000006").symlink_to(tmp_path / "elsewhere")
    checkpoints_in(tmp_path).recover()
    kept = {"step-00000001", "step-00000005", "step-00000006", "elsewhere"}
    assert set(os.listdir(tmp_path)) == {*others, *kept}
    assert checkpoints_in(tmp_path).steps() == [1]


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for step in (1, 2):
        with mock.patch("os.write", full), pytest.raises(UserError) as caught:
            save(tmp_path, step, 2)
        said = f"cannot write checkpoint {step} in {tmp_path} (No space left on device): "
        assert str(caught.value).startswith(said)
        assert os.listdir(tmp_path) == ["step-00000001"] and seed_of(tmp_path, 1) == 1
