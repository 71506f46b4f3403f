"""How many lanes there may be, and when they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from learning.bounds import Depth
from learning.settings import OuterSettings, Settings


def _sync_of(value: object) -> str | None:
    if isinstance(value, Mapping | OuterSettings):
        return "outer"
    return "step" if value == "step" else None


Sync = Annotated[
    Annotated[Literal["step"], Tag("step")] | Annotated[OuterSettings, Tag("outer")],
    Discriminator(
        _sync_of,
        custom_error_type="sync",
        custom_error_message="use step, or a section with every, a number of steps",
    ),
]
"""When lanes agree: on every update, or by outer steps."""


class LaneSettings(Settings):
    """How many copies of the chain of blocks share the shards of a step."""

    min: Depth = Field(default=1, description="without room for so many, a run waits")
    max: Depth = Field(default=1, description="the run grows to so many as nodes join")
    sync: Sync = Field(default="step", description="when they agree: each step, or every so many")

    @property
    def outer(self) -> OuterSettings | None:
        """How lanes agree that learn apart; None: they share every update."""
        return self.sync if isinstance(self.sync, OuterSettings) else None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(
                f"lanes.max = {self.max} is below lanes.min = {self.min}: raise it, or lower "
                "lanes.min"
            )
        return self
