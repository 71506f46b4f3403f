"""The directory of a run: what was asked for, which code ran, what came out, and who is in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from learning.errors import UserError, named
from learning.settings import Settings
from learning.yaml_files import write_yaml
from orchestrator.checkpoints import Checkpoints
from orchestrator.files import (
    remove_leftovers,
    sealed,
    sync_directory,
    temporary,
    write_all,
    write_file,
)
from orchestrator.fingerprints import NAME as FINGERPRINTS
from orchestrator.fingerprints import Fingerprints
from orchestrator.owner import claim, claimed
from orchestrator.plan import Plan
from orchestrator.record_files import (
    check_no_link,
    open_growing,
    read_json,
    read_record,
    read_sealed,
    read_yaml_record,
    replace_record,
    writing,
)
from orchestrator.run_records import METRICS, SPANS, RunRecords
from orchestrator.storage import LocalStorage, shared_storage

_REPLACED = ("state.json", "config.yaml", FINGERPRINTS, METRICS, SPANS)


class RunState(Settings):
    """How far a run has come; `steps` counts finished steps."""

    status: Literal["running", "finished", "failed", "stopped"] = "running"
    steps: int = Field(default=0, ge=0)
    mlflow_run_id: str | None = Field(default=None)
    error: str | None = Field(default=None, description="why the run failed")
    id: str | None = Field(default=None, description="its name as the owner of a shared storage")


def check_free(path: Path) -> None:
    """Check that a new run may be made at a path; `RunDirectory.create` does so once more.

    Raises:
        UserError: when something is there, unless it is an empty directory.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
        raise UserError(
            f"run.directory = {path} exists and is not an empty directory: choose another "
            "run.directory or --resume it"
        )


class RunDirectory(RunRecords):
    """A run on disk. One process, the one in `lock()`, may write; reading needs no lock."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config: Mapping[str, Any],
        version: Mapping[str, Any],
        plan: Plan,
        fingerprints: Fingerprints | None = None,
    ) -> Self:
        """Make the directory of a new run, all of it or nothing.

        Args:
            config: the resolved settings, as JSON knows them.
            version: see `code_version`.
            fingerprints: what decides the bits of the run.

        Raises:
            UserError: when the path is taken or cannot be written.
        """
        path = Path(os.path.abspath(path))
        plain = json.loads(json.dumps(config))  # YAML would write tuples as Python objects
        shared = shared_storage(plain)
        state = RunState(id=uuid.uuid4().hex if shared else None)
        told = {} if fingerprints is None else {FINGERPRINTS: _told(fingerprints)}
        contents = {
            "config.yaml": _settings(plain),
            **told,
            "version.json": (json.dumps(version, indent=2) + "\n").encode(),
            "plan.json": (plan.model_dump_json(indent=2) + "\n").encode(),
            "state.json": sealed(state.model_dump()),
            METRICS: b"",
            SPANS: b"",
        }
        check_free(path)
        made = [parent for parent in path.parents if not parent.exists()]  # innermost first
        new = path.parent / f".{path.name}.new-{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            os.mkdir(new)
            os.mkdir(new / "checkpoints")
            for name, data in contents.items():
                write_file(new / name, [data])
            sync_directory(new)
            with claimed(shared, state.id):
                os.rename(new, path)  # refuses a directory that someone filled in the meantime
                new = path
                sync_directory(path.parent)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
            if isinstance(error, OSError):
                raise UserError(
                    f"cannot create run.directory = {path} ({error.strerror}): choose another"
                ) from error
            raise
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the directory of an existing run.

        Raises:
            UserError: when there is none.
        """
        path = Path(os.path.abspath(path))
        for name in ("config.yaml", "state.json"):
            if not os.path.isfile(path / name):  # False too for what no system takes as a name
                raise UserError(
                    f"{path} is not a run directory (no {name}): choose one that a run has made"
                )
        return cls(path)

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Keep other processes out and clear away what a killed one left behind.

        The operating system releases the lock when the process ends, however it ends.

        Args:
            patience: seconds to wait for a process that is about to end.

        Raises:
            UserError: when the run is in use.
        """
        path = self.path / "lock"
        with writing(path, f"lock run {named(self.path)} by"):
            file = open_growing(path)
        with file:
            try:
                _lock(file, patience)
            except BlockingIOError as error:
                holder = os.pread(file.fileno(), 20, 0).decode(errors="replace").strip()
                raise UserError(
                    f"run {self.path} is in use by process {holder or '?'}: wait until it ends, "
                    "stop it, or choose another run.directory"
                ) from error
            except OSError as error:
                raise UserError(
                    f"cannot lock run {named(self.path)} ({error.strerror}): keep it on a file "
                    "system that knows locks"
                ) from error
            with writing(path):
                os.ftruncate(file.fileno(), 0)
                write_all(file.fileno(), f"{os.getpid()}\n".encode())
            if (run := self.state.id) is not None:
                claim(self.checkpoints.storage, run)
            self.checkpoints.recover()
            for name in _REPLACED:
                with suppress(OSError):
                    temporary(self.path / name).unlink()
            try:
                yield
            finally:
                self.close()

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run, wherever its settings say that they lie."""
        path = self.path / "checkpoints"
        check_no_link(path, "move them there and set checkpoints.storage, or put a directory there")
        return Checkpoints(shared_storage(self.config) or LocalStorage(path))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings of the run."""
        return read_yaml_record(self.path / "config.yaml")

    @property
    def fingerprints(self) -> Fingerprints | None:
        """What decides the bits of the run; None for one that was made before there were any.

        Raises:
            UserError: for a file that is damaged or foreign.
        """
        path, fix = self.path / FINGERPRINTS, "restore it from a copy"
        if not os.path.lexists(path):
            return None
        try:
            return Fingerprints.model_validate(read_sealed(path, fix))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise UserError(f"{named(path)} is foreign ({what}): {fix}") from error

    def change(self, config: Mapping[str, Any], fingerprints: Fingerprints | None) -> None:
        """Go on with other settings; a crash between the two files is told at the next resume."""
        if fingerprints is not None:
            replace_record(self.path / FINGERPRINTS, [_told(fingerprints)])
        replace_record(self.path / "config.yaml", [_settings(config)])

    @property
    def version(self) -> dict[str, Any]:
        """Which code began the run, and where; see `code_version`."""
        return read_json(self.path / "version.json", _version)

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        path = self.path / "plan.json"
        return Plan.of(read_record(path), path)

    @property
    def state(self) -> RunState:
        """How far the run has come."""
        path, fix = self.path / "state.json", "restore it from a copy or start a new run"
        try:
            return RunState.model_validate(read_sealed(path, fix))
        except ValidationError as error:
            raise UserError(
                f"{named(path)} is foreign ({error.errors()[0]['msg']}): {fix}"
            ) from error

    def update_state(self, **fields: Any) -> RunState:
        """Change some fields of the state, atomically.

        Raises:
            ValueError: for a field that `RunState` does not have, or a value it refuses.
            UserError: when the state cannot be read or written.
        """
        state = RunState.model_validate(self.state.model_dump() | fields)
        replace_record(self.path / "state.json", [sealed(state.model_dump())])
        return state


def _told(fingerprints: Fingerprints) -> bytes:
    return sealed(fingerprints.model_dump())


def _settings(config: Mapping[str, Any]) -> bytes:
    plain = json.loads(json.dumps(config))  # YAML would write tuples as Python objects
    return write_yaml(plain).encode()


def _version(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError("it is no record of versions")
    return content


def _lock(file: FileIO, patience: float) -> None:
    """Lock a file.

    Raises:
        BlockingIOError: when another process has it all the time.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)  # the system's own wait has no end
