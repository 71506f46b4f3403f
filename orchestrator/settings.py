"""Settings of the plan and of the engine: read by commands that start neither, without Ray."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from learning.bounds import Cores, CountFrom0, Depth, Fraction, Names, Seconds, Threads
from learning.settings import Settings

Transport = Literal["object_store", "direct"]
SourcePlace = Literal["block1", "actor"]
"""Who makes the batches: block 1, or an actor of its own."""
LEAST_GPUS = 0.01


class ResourceSettings(Settings):
    """What one block reserves for itself and its feedback module.

    `auto` CPUs share the cluster's evenly, at most one a block; `auto` threads likewise.
    """

    cpus: Cores | None = Field(default=None, description="null: shared evenly, at most 1")
    gpus: Fraction = Field(default=0.0, description="a block works on one device")
    threads: Threads | None = Field(default=None, description="null: cores / blocks, at least 1")

    @field_validator("gpus")
    @classmethod
    def _enough_to_count(cls, gpus: float) -> float:
        # Ray counts in ten-thousandths, and an actor whose share rounds to 0 would see no GPU.
        if 0 < gpus < LEAST_GPUS:
            raise ValueError(
                f"engine.resources.gpus = {gpus} is below {LEAST_GPUS}: use 0 for the CPU, or 1 / "
                "(blocks on a GPU)"
            )
        return gpus


class BlocksSettings(Settings):
    """How to cut the network: at named units, or into `count` blocks balanced by a measure."""

    count: Depth = Field(default=2, description="number of blocks; len(at) + 1 when at names units")
    at: Names | Literal["auto"] = "auto"
    balance: Literal["time", "memory", "parameters"] = "time"

    @model_validator(mode="after")
    def _count_the_cuts(self) -> Self:
        if self.at != "auto":
            object.__setattr__(self, "count", len(self.at) + 1)  # the model itself is frozen
        return self


class RecoverySettings(Settings):
    """What happens when actors or nodes are lost."""

    mode: Literal["exact", "local", "off"] = Field(
        default="exact",
        description="who goes back to the last checkpoint: all, what was lost, or the run ends",
    )
    max_failures: CountFrom0 = Field(default=20, description="an hour; one more ends the run")
    patience: Seconds = Field(default=300.0, description="seconds to wait for lost resources")
    hang: Seconds = Field(default=30.0, description="least seconds that count as a hang")
