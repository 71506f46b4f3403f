"""The plan: which units form which block, what the blocks hold and what they send to each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from rich.table import Table

from learning.errors import UserError, named
from learning.settings import Settings
from learning.units import Unit, check_ownership
from orchestrator.files import create_file

_FIX = "point to a file written by Plan.save or plan again"


class BlockPlan(Settings):
    """One block of a plan.

    Attributes:
        index: position in the chain, from 1.
        parameters: number of scalars in its parameters.
        input_shape: shape of its input without the batch.
        output_shape: shape of its output without the batch.
        boundary_bytes: bytes of its output for one global batch: the message to the next block.
        activation_bytes: bytes it keeps for its backward pass for one global batch.
        time_share: share (0 to 1) of the network's forward and backward time; None if not timed.
        cpus, gpus: what its actor reserves.
    """

    index: int = Field(ge=1)
    units: tuple[str, ...] = Field(min_length=1)
    parameters: int = Field(ge=0)
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    boundary_bytes: int = Field(ge=0)
    activation_bytes: int = Field(ge=0)
    time_share: float | None = Field(default=None, ge=0, le=1)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)


class Plan(Settings):
    """A network cut into blocks."""

    blocks: tuple[BlockPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_a_chain(self) -> Self:
        names = [name for block in self.blocks for name in block.units]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"unit {twice!r} appears twice")
        for index, block in enumerate(self.blocks, start=1):
            if block.index != index:
                raise ValueError(f"block {index} has index {block.index}")
        for a, b in zip(self.blocks[:-1], self.blocks[1:], strict=True):
            if a.output_shape != b.input_shape:
                raise ValueError(
                    f"block {a.index} sends {a.output_shape} but block {b.index} expects "
                    f"{b.input_shape}"
                )
        return self

    def hash(self) -> str:
        """Identify the partition in 16 hex digits: units and shapes, not times or bytes."""
        cut = [
            {"units": b.units, "input_shape": b.input_shape, "output_shape": b.output_shape}
            for b in self.blocks
        ]
        text = json.dumps(cut, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            UserError: when the file exists or cannot be written.
        """
        create_file(Path(path), [(self.model_dump_json(indent=2) + "\n").encode()])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan written by `save`.

        Raises:
            UserError: when the file cannot be read or is not a plan.
        """
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # a path with a NUL byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read the plan {named(path)} ({reason}): {_FIX}") from error
        return cls.of(data, path)

    @classmethod
    def of(cls, data: bytes, path: str | Path) -> Self:
        """The plan that a file holds.

        Raises:
            UserError: when that is none.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]  # one sentence: the first problem is enough to act on
            where = ".".join(str(part) for part in first["loc"])
            what = f"{where}: {first['msg']}" if where else first["msg"]
            raise UserError(f"{named(path)} is not a plan ({what}): {_FIX}") from error

    def table(self) -> Table:
        """Lay the plan out as a table with one row a block."""
        table = Table(title=f"plan {self.hash()}")
        table.add_column("block", justify="right")
        table.add_column("units")
        for name in ("parameters", "output", "boundary", "activations", "time"):
            table.add_column(name, justify="right")
        for b in self.blocks:
            table.add_row(
                str(b.index),
                b.units[0]
                if len(b.units) == 1
                else f"{b.units[0]} .. {b.units[-1]} ({len(b.units)})",
                f"{b.parameters:,}",
                " x ".join(str(size) for size in b.output_shape) or "scalar",
                human_bytes(b.boundary_bytes),
                human_bytes(b.activation_bytes),
                "-" if b.time_share is None else f"{b.time_share:.0%}",
            )
        return table

    def units_of_blocks(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Group `units`, all units of the network in order, into the blocks of this plan.

        Raises:
            UserError: when the network is not the one of this plan, or blocks share a tensor.
        """
        planned = [name for block in self.blocks for name in block.units]
        actual = [unit.name for unit in units]
        if planned != actual:
            pairs = enumerate(zip_longest(actual, planned, fillvalue="missing"), start=1)
            at, (found, expected) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            raise UserError(
                f"unit {at} is {found} in this network and {expected} in plan {self.hash()}: "
                "use the network the plan was made for or plan again"
            )
        blocks = group(units, [len(block.units) for block in self.blocks])
        check_ownership(blocks)
        return blocks


def group(units: Sequence[Unit], sizes: Sequence[int]) -> list[list[Unit]]:
    """Take so many units at a time for a block each."""
    rest = iter(units)
    return [[next(rest) for _ in range(size)] for size in sizes]


def human_bytes(count: int) -> str:
    """Write a number of bytes for people: 512 B, 1.5 KiB, 2.0 MiB."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"
