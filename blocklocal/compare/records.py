"""Records of a study: one JSON file a run, one for the costs of each combination.

A record counts for a run when its settings, read by today's configuration, are those of the run.
So settings that were added since with defaults do not invalidate it, and neither does moving the
data. Its file's name is for people: records are found by what they hold.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocklocal.compare.checking import check_costs, check_run
from blocklocal.config import RunConfig, make_config
from learning.errors import UserError
from orchestrator.record_files import check_no_link, read_json, replace_record, writing

Record = dict[str, Any]
CODE = ("package", "git_commit", "git_dirty", "python", "torch")
"""What of the code's version is kept with each record."""
NOT_COMPARED: dict[str, Any] = {
    "checkpoints": True,
    "tracking": True,
    "run": {"name", "directory", "given"},
    "engine": {"address", "window", "transport", "recovery", "source", "rebalance"},
}
"""Settings that do not change what a run computes."""


def run_settings(config: RunConfig) -> dict[str, Any]:
    """All settings of a run but where its data lie."""
    return config.model_dump(mode="json", exclude={"data": set(_paths(config))})


def same_settings(settings: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether recorded settings, read by today's configuration, are those of `config`."""
    return _today(settings, _paths(config)) == _compared(config)


def _today(settings: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, Any] | None:
    """Recorded settings with today's defaults; None where they are no longer possible."""
    tree = copy.deepcopy(dict(settings))
    if isinstance(tree.get("data"), dict):
        tree["data"] |= paths
    try:
        return _compared(make_config(tree))
    except UserError:
        return None


def _paths(config: RunConfig) -> dict[str, Path]:
    return {name: value for name, value in config.data if isinstance(value, Path)}


def _compared(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_COMPARED | {"data": set(_paths(config))})


@dataclass
class Records:
    """What a study's directory holds of one kind, `runs` or `costs`.

    Attributes:
        directory: of the study.
        held: the records, by path.
    """

    directory: Path
    kind: str
    held: dict[Path, Record] = field(default_factory=dict)
    _read_today: dict[tuple[Path, str], dict[str, Any] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check = check_run if self.kind == "runs" else check_costs
        for path in sorted((self.directory / self.kind).glob("*.json")):
            self.held[path] = read_json(path, check, "delete it, and its run is repeated")

    def find(self, config: RunConfig, torch: str, *, exactly: bool = True) -> Record | None:
        """The record of a run, preferably of this version of torch.

        Args:
            exactly: whether records of other versions are left out.
        """
        paths, wanted = _paths(config), _compared(config)
        same = [r for path, r in self.held.items() if self._today(path, paths) == wanted]
        mine = [r for r in same if r["code"].get("torch") == torch]
        return (mine or ([] if exactly else same) or [None])[-1]

    def _today(self, path: Path, paths: Mapping[str, Path]) -> dict[str, Any] | None:
        """The settings of a record, read once for all that ask with the same data paths."""
        key = (path, repr(sorted(paths.items())))
        if key not in self._read_today:
            self._read_today[key] = _today(self.held[path]["settings"], paths)
        return self._read_today[key]

    def add(self, label: str, record: Record) -> Path:
        """Write a record to a file of its own, whole or not at all."""
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        key = json.dumps([record["settings"], record["code"].get("torch")], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        name = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:80]
        path = self.directory / self.kind / f"{name}-{digest}.json"
        check_no_link(path.parent, "put a directory in its place")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_record(path, [text.encode()])
        self.held[path] = record
        return path


def check_directory(directory: Path, name: str) -> None:
    """Check that a study may be kept in a directory.

    Raises:
        UserError: when it holds anything else, or another study.
    """
    fix = "choose another --directory"
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: {fix}")
    if any(directory.iterdir()) and not (directory / "runs").is_dir():
        raise UserError(f"{directory} is not empty and holds no study (no runs/): {fix}")
    try:
        held = read_json(directory / "results.json", lambda content: content["study"])
    except UserError:  # the report writes it anew
        return
    if held != name:
        raise UserError(f"{directory} holds the study {held!r}, not {name!r}: {fix}")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a study's directory and keep other processes from writing there.

    Raises:
        UserError: when it cannot be written or another process writes there.
    """
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write {directory} ({error.strerror}): choose another --directory"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another blocklocal compare works in {directory}: wait until it ends or stop it"
        ) from error
    finally:
        os.close(descriptor)
