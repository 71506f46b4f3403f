"""Sections of the run configuration that no lower room has: training, engine, run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from learning.bounds import (
    MOST_LABEL,
    Address,
    Epochs,
    Factor,
    FilePath,
    Kept,
    Samples,
    Seconds,
    Seed,
    Steps,
)
from learning.settings import Settings
from orchestrator.settings import RecoverySettings, ResourceSettings, SourcePlace, Transport
from orchestrator.stopping import PATIENCE


class TrainingSettings(Settings):
    """How long, and in what portions."""

    epochs: Epochs = 5.0
    steps: Steps | None = Field(default=None, description="wins over epochs")
    batch: Samples = Field(default=128, description="samples of one step")
    shards: Kept = Field(default=1, description="microbatches of one step")
    seed: Seed = 0
    evaluate_every: Steps | None = Field(
        default=None, description="steps between evaluations with checkpoints; null: an epoch"
    )
    evaluation_batch: Samples = 256

    @model_validator(mode="after")
    def _shards_divide(self) -> Self:
        if self.batch % self.shards:
            raise ValueError(
                f"training.batch = {self.batch} is not a multiple of training.shards = "
                f"{self.shards}: change one of them"
            )
        return self


class EngineSettings(Settings):
    """What runs the program: `ray` (actors on a cluster) or `sequential` (this process)."""

    kind: Literal["ray", "sequential"] = "ray"
    address: Address | None = Field(default=None, description="of a Ray cluster; null: a local one")
    window: Kept = Field(default=4, description="steps a block may run ahead of the next")
    transport: Transport = Field(
        default="object_store", description="of messages: Ray's object store, or sockets (direct)"
    )
    recovery: RecoverySettings = RecoverySettings()
    patience: Seconds = Field(
        default=PATIENCE,
        description="seconds for a run that is asked to stop to come to a step boundary",
    )
    source: SourcePlace | None = Field(
        default=None, description="of batches; null: an actor where a core is free, else block 1"
    )
    rebalance: Factor | None = Field(
        default=None,
        description="a block moves when it takes this share more of a step than planned; null: no",
    )
    resources: ResourceSettings = ResourceSettings()


class RunSettings(Settings):
    """Where a run is kept."""

    name: str = Field(default="run", max_length=MOST_LABEL, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    directory: FilePath | None = Field(default=None, description="null: runs/<name>-<time>")
    start: FilePath | None = Field(
        default=None, description="a directory of checkpoints; the run begins with the last of them"
    )
    given: tuple[Literal["data", "network"], ...] = Field(
        default=(),
        max_length=2,
        description="set by the Python API: what was given in memory, not in this file",
    )

    @field_validator("directory")
    @classmethod
    def _of_the_user(cls, directory: FilePath | None) -> Path | None:
        # A job's words reach its shell quoted: nobody else would replace ~.
        return None if directory is None else directory.expanduser()
