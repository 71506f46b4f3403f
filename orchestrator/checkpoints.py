"""Checkpoints: the tensors of all learners at one step, whole or not at all.

A checkpoint is a directory with one safetensors file a learner and, written last, `manifest.json`:
a directory without it does not count. The same step is saved anew in a directory of its own, and
the old one goes when the new one is complete. So nothing is ever renamed, as object stores cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from learning.data.preprocessing import Preprocessing
from orchestrator.checkpoint_reader import CheckpointReader
from orchestrator.files import sealed, temporary
from orchestrator.fingerprints import Fingerprints
from orchestrator.manifest import (
    INDEX,
    MANIFEST,
    Attempt,
    FileEntry,
    Index,
    Manifest,
    attempts,
    file_of,
)
from orchestrator.storage import refusing
from orchestrator.tensor_files import Hashed, encode_tensors
from orchestrator.tensors import State


class Checkpoints(CheckpointReader):
    """The checkpoints of one run; one process may write."""

    def save(
        self,
        step: int,
        state: State,
        *,
        plan_hash: str,
        rule: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
        fingerprints: Fingerprints | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> str:
        """Write the state after `step` finished steps; a checkpoint of this step is replaced.

        Args:
            fingerprints: of this state.
            preprocessing: what the network was trained to see.

        Returns:
            Where it is.

        Raises:
            ValueError: for a metric that is not finite.
            UserError: for a learner whose name cannot name a file.
            StorageError: when the storage fails; the checkpoints are then those of before.
        """
        head = {
            "step": step,
            "plan_hash": plan_hash,
            "rule": dict(rule),
            "metrics": metrics,
            "fingerprints": fingerprints,
            "preprocessing": preprocessing,
        }
        Manifest.model_validate({**head, "files": {}}).encode()  # fail before writing
        names = {learner: file_of(learner) for learner in state}
        with self._writing(f"write checkpoint {step}"):
            before = [a for a in attempts(self.storage.entries()) if a.step == step]
            new = Attempt(step, before[-1].number + 1 if before else 0)
            try:
                files = {}
                for learner, name in names.items():
                    data = Hashed(encode_tensors(state[learner]))
                    self.storage.write(f"{new.directory}/{name}", data, data.size)
                    entry = FileEntry(name=name, size=data.size, xxh3_128=data.checksum)
                    files[learner] = entry
                manifest = Manifest.model_validate({**head, "files": files})
                self.storage.replace(f"{new.directory}/{MANIFEST}", manifest.encode())
            except BaseException:
                with suppress(OSError):  # the failure that came first is the one to tell
                    self._discard(new)
                raise
            for old in before:
                self._discard(old)
        return self.storage.at(new.directory)

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
        data = sealed(Index.model_validate(index).model_dump())
        with self._writing(f"write {INDEX}"):
            self.storage.replace(INDEX, data)

    def prune(self, keep: int = 2) -> None:
        """Delete all checkpoints but the best and the `keep` newest, of which the last is one.

        Those after the last are of a past that training went back on, and go as well.
        """
        self.recover()
        current, index = self._current(), self._index()
        newest = [step for step in sorted(current) if index.last is None or step <= index.last]
        kept = {index.best, *newest[-keep:]}
        with self._writing("delete old checkpoints"):
            for step, attempt in current.items():
                if step not in kept:
                    self._discard(attempt)

    def recover(self) -> None:
        """Clear away what a crash left half done: the writing process calls this at its start."""
        entries = self._entries()
        found = attempts(entries)
        current = {a.step: a for a in found if a.complete}
        with self._writing("delete what was left half done"):
            for attempt in found:
                if attempt is not current.get(attempt.step):
                    self._discard(attempt)
            if (half := temporary(Path(INDEX)).name) in entries.get("", ()):
                self.storage.delete(half)

    def _discard(self, attempt: Attempt) -> None:
        """Delete an attempt, the manifest first: half a checkpoint never counts as one."""
        self.storage.delete(f"{attempt.directory}/{MANIFEST}")
        self.storage.delete_directory(attempt.directory)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        fix = "what was there before is kept; mend that and go on with --resume"
        with refusing(f"{what} in {self.storage.at()}", fix):
            yield
