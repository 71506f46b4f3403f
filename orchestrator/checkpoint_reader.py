"""Reading checkpoints: every byte is verified before a tensor is used, and nothing is written."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learning.data.preprocessing import Preprocessing
from learning.errors import UserError
from orchestrator.files import DamageError
from orchestrator.fingerprints import Fingerprints, differing, tensor_sets
from orchestrator.manifest import INDEX, MANIFEST, Attempt, Index, Manifest, attempts
from orchestrator.record_files import MOST_BYTES
from orchestrator.storage import Storage, reason, refusing
from orchestrator.tensor_files import decode_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; `step` is where training resumes."""

    step: int
    state: dict[str, dict[str, Tensor]]
    plan_hash: str
    rule: dict[str, Any]
    metrics: dict[str, float] | None
    fingerprints: Fingerprints | None = None
    preprocessing: Preprocessing | None = None


class CheckpointReader:
    """The checkpoints of one run, to be read by any process.

    Every method raises UserError when the storage fails.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of `step` and verify every byte of it.

        Raises:
            UserError: when there is none, or one of its files is missing, damaged or foreign.
        """
        attempt, fix = self._find(step)
        return self._load(attempt, fix)

    def newest_valid(self, at_most: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """Read the newest checkpoint, up to the step `at_most`, that is not damaged.

        Returns:
            It, None without any, and a sentence about each newer one that was skipped.

        Raises:
            UserError: when the storage cannot be read, which says nothing about a checkpoint.
        """
        skipped = []
        for step, attempt in sorted(self._current().items(), reverse=True):
            if at_most is None or step <= at_most:
                try:
                    return self._load(attempt, f"checkpoint {step} is skipped"), skipped
                except DamageError as error:
                    skipped.append(str(error))
        return None, skipped

    def manifest(self, step: int) -> Manifest:
        """Read what the checkpoint of `step` says about itself, without its tensors.

        Raises:
            UserError: when there is none, or its manifest is missing, damaged or foreign.
        """
        attempt, fix = self._find(step)
        return self._manifest(attempt, fix)

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
                f"there is no checkpoint {which}{of} in {self.storage.at()}: {_choose(steps)}"
            )
        return step

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._current())

    def _current(self) -> dict[int, Attempt]:
        """The checkpoint of each step: its newest complete attempt."""
        return {a.step: a for a in attempts(self._entries()) if a.complete}

    def _find(self, step: int) -> tuple[Attempt, str]:
        """The checkpoint of `step`, and what to do when it is damaged."""
        current = self._current()
        others = _choose(sorted(current.keys() - {step}))
        if step not in current:
            raise UserError(f"there is no checkpoint {step} in {self.storage.at()}: {others}")
        return current[step], f"restore it from a copy or {others}"

    def _load(self, attempt: Attempt, fix: str) -> Checkpoint:
        manifest = self._manifest(attempt, fix)
        expected = {MANIFEST} | {entry.name for entry in manifest.files.values()}
        for name in sorted(attempt.files - expected):
            if not name.startswith("."):  # hidden: of the file system
                raise UserError(
                    f"{self.storage.at(f'{attempt.directory}/{name}')} is not listed in the "
                    f"checkpoint's {MANIFEST}: move it away or choose another checkpoint"
                )
        state = {}
        for learner, entry in manifest.files.items():
            name = f"{attempt.directory}/{entry.name}"
            data, where = self._read(name, fix, entry.size), self.storage.at(name)
            state[learner] = decode_tensors(data, entry.size, entry.sums, where, fix)
        told = manifest.fingerprints
        if told is not None and (wrong := differing(told.tensors or {}, tensor_sets(state))):
            where = self.storage.at(f"{attempt.directory}/{MANIFEST}")
            raise DamageError(
                f"the tensors of {wrong[0]} are not those that {where} tells (a name, a type or a "
                f"shape differs): {fix}"
            )
        return Checkpoint(
            attempt.step,
            state,
            manifest.plan_hash,
            manifest.rule,
            manifest.metrics,
            told,
            manifest.preprocessing,
        )

    def _manifest(self, attempt: Attempt, fix: str) -> Manifest:
        name = f"{attempt.directory}/{MANIFEST}"
        return Manifest.decode(self._read(name, fix), attempt.step, self.storage.at(name), fix)

    def _index(self) -> Index:
        if INDEX not in self._entries().get("", ()):
            return Index()
        return Index.decode(self._read(INDEX, "try again"), self.storage.at(INDEX))

    def _entries(self) -> dict[str, frozenset[str]]:
        with refusing(f"list the checkpoints in {self.storage.at()}", "make it readable"):
            return self.storage.entries()

    def _read(self, name: str, fix: str, most: int = MOST_BYTES) -> bytes:
        try:
            return self.storage.read(name, most)
        except MemoryError as error:
            what = f"{most} bytes do not fit into memory"
            raise UserError(f"cannot read {self.storage.at(name)} ({what}): {fix}") from error
        except OSError as error:
            lost = error.errno in (errno.ENOENT, errno.EIO, errno.EFBIG)
            kind = DamageError if lost else UserError
            raise kind(f"cannot read {self.storage.at(name)} ({reason(error)}): {fix}") from error


def _choose(steps: Iterable[int]) -> str:
    listed = ", ".join(str(step) for step in steps)
    return f"choose one of the steps {listed}" if listed else "start a new run"
