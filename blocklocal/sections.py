"""Sections of the run configuration that no lower room has: training, engine, run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from learning.settings import Settings
from orchestrator.chain import Transport
from orchestrator.placement import ResourceSettings
from orchestrator.program import SourcePlace
from orchestrator.recovery import RecoverySettings


class TrainingSettings(Settings):
    """How long, and in what portions."""

    epochs: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    steps: int | None = Field(default=None, ge=1, description="wins over epochs")
    batch: int = Field(default=128, ge=1, description="samples of one step")
    shards: int = Field(default=1, ge=1, description="microbatches of one step")
    seed: int = Field(default=0, ge=0)
    evaluate_every: int | None = Field(
        default=None, ge=1, description="steps between evaluations with checkpoints; null: an epoch"
    )
    evaluation_batch: int = Field(default=256, ge=1)

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
    address: str | None = Field(default=None, description="of a Ray cluster; null: a local one")
    window: int = Field(default=4, ge=1, description="steps a block may run ahead of the next")
    transport: Transport = Field(
        default="object_store", description="of messages: Ray's object store, or sockets (direct)"
    )
    recovery: RecoverySettings = RecoverySettings()
    source: SourcePlace | None = Field(
        default=None, description="of batches; null: an actor where a core is free, else block 1"
    )
    rebalance: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="a block moves when it takes this share more of a step than planned; null: no",
    )
    resources: ResourceSettings = ResourceSettings()


class RunSettings(Settings):
    """Where a run is kept."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    directory: Path | None = Field(default=None, description="null: runs/<name>-<time>")
    start: Path | None = Field(
        default=None, description="a directory of checkpoints; the run begins with the last of them"
    )
    given: tuple[Literal["data", "network"], ...] = Field(
        default=(), description="set by the Python API: what was given in memory, not in this file"
    )

    @field_validator("directory")
    @classmethod
    def _of_the_user(cls, directory: Path | None) -> Path | None:
        # A job's words reach its shell quoted: nobody else would replace ~.
        return None if directory is None else directory.expanduser()
