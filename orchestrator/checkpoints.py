"""Checkpoints: the tensors of all learners at one step, on disk whole or not at all.

A step is a directory `step-00000050` with one safetensors file a learner and `manifest.json`.
Beside it may lie, for the length of a call or after a crash, `.new-step-00000050` (being
written), `.old-step-00000050` (whole, being replaced) and `.trash-step-00000050` (being deleted).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError
from torch import Tensor

from learning.errors import UserError
from learning.settings import Settings
from orchestrator.files import (
    child,
    read_sealed,
    replace_file,
    sealed,
    sync_directory,
    temporary,
    write_file,
)
from orchestrator.tensors import State, encode_tensors, read_tensors

_ENTRY = re.compile(r"(?:\.(new|old|trash)-)?step-(\d{8,})")


class FileEntry(Settings):
    """What a checkpoint says about one of its files."""

    name: str
    size: int = Field(ge=0)
    sha256: str


class Manifest(Settings):
    """What a checkpoint says about itself.

    Attributes:
        step: number of finished steps, so training resumes at this step.
        plan_hash: `Plan.hash` of the run.
        rule: resolved settings of the learning rule.
        files: by learner.
    """

    step: int = Field(ge=0)
    plan_hash: str
    rule: dict[str, Any]
    metrics: dict[str, FiniteFloat] | None = Field(default=None)
    files: dict[str, FileEntry]


class _Index(Settings):
    last: int | None = Field(default=None, ge=0)
    best: int | None = Field(default=None, ge=0)
    best_value: FiniteFloat | None = Field(default=None)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; `step` is where training resumes."""

    step: int
    state: dict[str, dict[str, Tensor]]
    plan_hash: str
    rule: dict[str, Any]
    metrics: dict[str, float] | None


class Checkpoints:
    """The checkpoints of one run. One process may write; any may read, and reading never writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index_path = directory / "index.json"

    def save(
        self,
        step: int,
        state: State,
        *,
        plan_hash: str,
        rule: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> Path:
        """Write the state after `step` finished steps; a checkpoint of this step is replaced.

        Returns:
            The checkpoint's directory.

        Raises:
            ValueError: for a metric that is not finite.
            UserError: for a learner whose name cannot name a file.
        """
        final, new = self._path(step), self._path(step, "new")
        head = {"step": step, "plan_hash": plan_hash, "rule": dict(rule), "metrics": metrics}
        sealed(Manifest.model_validate({**head, "files": {}}).model_dump())  # fail before writing
        paths = {learner: child(new, _file(learner), "learner file") for learner in state}
        self.directory.mkdir(parents=True, exist_ok=True)
        self.recover(step)
        try:
            os.mkdir(new)
            files = {}
            for learner, path in paths.items():
                data = encode_tensors(state[learner])
                write_file(path, [data])
                digest = hashlib.sha256(data).hexdigest()
                files[learner] = FileEntry(name=path.name, size=len(data), sha256=digest)
            manifest = Manifest.model_validate({**head, "files": files})
            write_file(new / "manifest.json", [sealed(manifest.model_dump())])
            sync_directory(new)
            self._publish(step)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return final

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of `step` and verify every byte of it.

        Raises:
            UserError: when there is none, or one of its files is missing, damaged or foreign.
        """
        manifest, directory, fix = self.manifest(step), self._locate(step), self._fix(step)
        expected = {"manifest.json"} | {entry.name for entry in manifest.files.values()}
        for name in sorted(os.listdir(directory)):
            if name not in expected and not name.startswith("."):  # hidden: of the file system
                raise UserError(
                    f"{directory / name} is not listed in the checkpoint's manifest.json: "
                    f"move it away or {fix}"
                )
        state = {}
        for learner, entry in manifest.files.items():
            path = directory / entry.name
            state[learner] = read_tensors(path, entry.size, entry.sha256, fix)
        return Checkpoint(step, state, manifest.plan_hash, manifest.rule, manifest.metrics)

    def manifest(self, step: int) -> Manifest:
        """Read what the checkpoint of `step` says about itself, without its tensors.

        Raises:
            UserError: when there is none, or its manifest is missing, damaged or foreign.
        """
        path, fix = self._locate(step) / "manifest.json", self._fix(step)
        try:
            manifest = Manifest.model_validate(read_sealed(path, fix))
        except ValidationError as error:
            raise UserError(
                f"{path} is not a manifest ({error.errors()[0]['msg']}): {fix}"
            ) from error
        if manifest.step != step:
            raise UserError(f"{path} is of step {manifest.step}, not of step {step}: {fix}")
        for learner, entry in manifest.files.items():
            if entry.name != child(path.parent, _file(learner), "learner file").name:
                raise UserError(f"{path} names a file {entry.name!r} for {learner}: {fix}")
        return manifest

    def mark(
        self, *, last: int | None = None, best: int | None = None, value: float | None = None
    ) -> None:
        """Remember the last checkpoint, or the best one and its value, or both at once.

        Raises:
            UserError: when there is no checkpoint of that step.
        """
        if (best is None) != (value is None):
            raise ValueError("a best checkpoint comes with its value, and a value with its step")
        index = self._index().model_dump()
        if last is not None:
            index |= {"last": self.resolve(last)}
        if best is not None:
            index |= {"best": self.resolve(best), "best_value": value}
        replace_file(self._index_path, [sealed(_Index.model_validate(index).model_dump())])

    @property
    def last(self) -> int | None:
        """The step marked as last."""
        return self._index().last

    @property
    def best(self) -> int | None:
        """The step marked as best."""
        return self._index().best

    @property
    def best_value(self) -> float | None:
        """The value with which the best step was marked."""
        return self._index().best_value

    def resolve(self, which: str | int) -> int:
        """The step of the checkpoint `which`: "last", "best" or a step, as a number or in digits.

        Raises:
            UserError: when there is no such checkpoint.
        """
        if which in ("last", "best"):
            step = self.last if which == "last" else self.best
        elif isinstance(which, int) or re.fullmatch("[0-9]{1,18}", which):
            step = int(which)
        else:
            raise UserError(f"checkpoint {which!r} is unknown: choose last, best or a step")
        steps = self.steps()
        if step is None or step not in steps:
            of = f" (step {step})" if step is not None and which in ("last", "best") else ""
            raise UserError(
                f"there is no checkpoint {which}{of} in {self.directory}: {_choose(steps)}"
            )
        return step

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        found = set()
        for kind, step, path in self._entries():
            if kind in (None, "old") and (path / "manifest.json").is_file():
                found.add(step)
        return sorted(found)

    def prune(self) -> None:
        """Delete all checkpoints but the last and the best; without a last, the newest is kept."""
        self.recover()
        steps, index = self.steps(), self._index()
        keep = {index.best, max(steps, default=None) if index.last is None else index.last}
        self._discard([self._path(step) for step in steps if step not in keep])

    def recover(self, step: int | None = None) -> None:
        """Undo what a crash left half done: the writing process calls this when it starts.

        Args:
            step: the only step to look at; None for all.
        """
        for kind, found, path in self._entries():
            if step is not None and found != step:
                continue
            if kind == "old" and not self._path(found).exists():
                os.rename(path, self._path(found))
            elif kind == "old":
                self._discard([path])
            elif kind is not None:
                shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            temporary(self._index_path).unlink()

    def _publish(self, step: int) -> None:
        """Put `.new-` in place. At each moment the new or the old checkpoint lies there whole."""
        new, final, old = self._path(step, "new"), self._path(step), self._path(step, "old")
        replaces = final.exists()
        if replaces:
            os.rename(final, old)
        os.rename(new, final)  # if this fails, readers find the old one and `recover` restores it
        sync_directory(self.directory)
        if replaces:
            self._discard([old])

    def _discard(self, paths: list[Path]) -> None:
        """Delete checkpoints, by renaming first: half a checkpoint never bears a step's name."""
        trash = [self._path(int(path.name.rpartition("-")[2]), "trash") for path in paths]
        for path, away in zip(paths, trash, strict=True):
            shutil.rmtree(away, ignore_errors=True)
            os.rename(path, away)
        if trash:
            sync_directory(self.directory)
        for away in trash:
            shutil.rmtree(away, ignore_errors=True)  # what remains goes at the next start

    def _entries(self) -> list[tuple[str | None, int, Path]]:
        """(new, old, trash or None; step; path) of everything that bears one of our names."""
        names = sorted(os.listdir(self.directory)) if self.directory.is_dir() else []
        matches = [match for match in map(_ENTRY.fullmatch, names) if match]
        entries = [(m[1], int(m[2]), self.directory / m[0]) for m in matches]
        return [e for e in entries if e[2] == self._path(e[1], e[0]) and e[2].is_dir()]

    def _path(self, step: int, kind: str | None = None) -> Path:
        return self.directory / f"{f'.{kind}-' if kind else ''}step-{step:08d}"

    def _locate(self, step: int) -> Path:
        for path in (self._path(step), self._path(step, "old")):
            if path.is_dir():
                return path
        raise UserError(
            f"there is no checkpoint {step} in {self.directory}: {_choose(self.steps())}"
        )

    def _index(self) -> _Index:
        if not self._index_path.exists():
            return _Index()
        fix = "delete it and choose a checkpoint by its step"
        try:
            return _Index.model_validate(read_sealed(self._index_path, fix))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise UserError(f"{self._index_path} is not an index ({what}): {fix}") from error

    def _fix(self, step: int) -> str:
        others = [other for other in self.steps() if other != step]
        return f"restore it from a copy or {_choose(others)}"


def _file(learner: str) -> str:
    return f"{learner}.safetensors"


def _choose(steps: Iterable[int]) -> str:
    listed = ", ".join(str(step) for step in steps)
    return f"choose one of the steps {listed}" if listed else "start a new run"
