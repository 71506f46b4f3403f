"""What checkpoints say about themselves: the manifest of each, and the index of all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from learning.data.preprocessing import Preprocessing
from learning.errors import UserError
from learning.settings import Settings
from orchestrator.files import DamageError, child, sealed, unsealed
from orchestrator.fingerprints import Fingerprints

MANIFEST, INDEX = "manifest.json", "index.json"
VERSIONS = (1, 2, 3)
"""Of the format of manifests; the last is the one that is written."""
_DIRECTORY = re.compile(r"step-(\d{8,18})(?:\.([1-9]\d{0,8}))?")


class FileEntry(Settings):
    """What a checkpoint says about one of its files; it has one checksum.

    Attributes:
        sha256: that of manifests of format version 1.
    """

    name: str
    size: int = Field(ge=0)
    xxh3_128: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if len(self.sums) != 1:
            raise ValueError(f"{self.name} has {len(self.sums)} checksums, not one")
        return self

    @property
    def sums(self) -> dict[str, str]:
        """By name of the checksum."""
        named = {"xxh3_128": self.xxh3_128, "sha256": self.sha256}
        return {name: value for name, value in named.items() if value is not None}


class Manifest(Settings):
    """What a checkpoint says about itself.

    Attributes:
        step: number of finished steps, so training resumes at this step.
        plan_hash: `Plan.hash` of the run.
        rule: resolved settings of the learning rule.
        files: by learner.
        fingerprints: what decides the bits of the run; manifests before version 3 have none.
        preprocessing: what turns raw rows into what the network sees; manifests before version 3
            have none.
    """

    step: int = Field(ge=0)
    plan_hash: str
    rule: dict[str, Any]
    metrics: dict[str, FiniteFloat] | None = Field(default=None)
    files: dict[str, FileEntry]
    fingerprints: Fingerprints | None = None
    preprocessing: Preprocessing | None = None

    def encode(self) -> bytes:
        """Encode it for `decode`.

        Raises:
            ValueError: for a number that is not finite.
        """
        return sealed(self.model_dump(exclude={"files": {"__all__": {"sha256"}}}), VERSIONS[-1])

    @classmethod
    def decode(cls, data: bytes, step: int, where: str, fix: str) -> Manifest:
        """Decode the manifest of the checkpoint of `step`.

        Args:
            where: the file, for the error message.
            fix: what the user can do about damage.

        Raises:
            UserError: for one that is damaged, of another step, or names files elsewhere.
        """
        try:
            manifest = cls.model_validate(unsealed(data, where, fix, VERSIONS))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise DamageError(f"{where} is not a manifest ({what}): {fix}") from error
        if manifest.step != step:
            raise DamageError(f"{where} is of step {manifest.step}, not of step {step}: {fix}")
        for learner, entry in manifest.files.items():
            if entry.name != file_of(learner):
                raise DamageError(f"{where} names a file {entry.name!r} for {learner}: {fix}")
        return manifest


class Index(Settings):
    """Which checkpoint is the last and which the best, by step."""

    last: int | None = Field(default=None, ge=0)
    best: int | None = Field(default=None, ge=0)
    best_value: FiniteFloat | None = Field(default=None)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Index:
        """Decode an index.

        Raises:
            UserError: for one that is damaged or foreign.
        """
        fix = "delete it and choose a checkpoint by its step"
        try:
            return cls.model_validate(unsealed(data, where, fix))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise UserError(f"{where} is not an index ({what}): {fix}") from error


@dataclass(frozen=True, order=True)
class Attempt:
    """A directory in which the checkpoint of a step was, or was to be, written.

    Attributes:
        number: attempts at the same step count up, and the highest complete one is the checkpoint.
        files: names of the files in it.
    """

    step: int
    number: int
    files: frozenset[str] = frozenset()

    @property
    def directory(self) -> str:
        """`step-00000050`, later attempts `step-00000050.1` and so on."""
        return f"step-{self.step:08d}" + (f".{self.number}" if self.number else "")

    @property
    def complete(self) -> bool:
        """Whether the manifest, which is written last, is there."""
        return MANIFEST in self.files


def attempts(entries: Mapping[str, Iterable[str]]) -> list[Attempt]:
    """All attempts among the directories of a storage, the newest last."""
    matches = ((name, _DIRECTORY.fullmatch(name)) for name in entries)
    found = [Attempt(int(m[1]), int(m[2] or 0), frozenset(entries[n])) for n, m in matches if m]
    return sorted(attempt for attempt in found if attempt.directory in entries)


def file_of(learner: str) -> str:
    """The file of a learner's tensors.

    Raises:
        UserError: for a learner whose name cannot name a file.
    """
    return child(Path(), f"{learner}.safetensors", "learner file").name
