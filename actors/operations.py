"""The operations that actors execute and the reports they return."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from actors.wire import Arrays
from learning.errors import UserError


class Kind(StrEnum):
    """What an operation does. F, B, U, V, E, S are those of docs/architecture.md."""

    BATCH = "batch"  # source, or block 1 itself: make one shard for block 1
    FORWARD = "F"  # block: run one shard forward, send it on
    ASSESS = "L"  # block: its own loss on one shard, send readout and gradient
    GRADIENT = "G"  # block: take the gradient of block `origin`'s loss through, send it on
    UPDATE = "U"  # block: optimizer step
    TABLE = "B"  # feedback module: compute the table of a step, send it
    PUBLISH = "P"  # block: send the weights that other blocks' objectives read
    READ = "W"  # block: take the weights that its objective reads
    READOUT = "R"  # feedback module: learn from one shard's readout
    FEEDBACK_UPDATE = "V"  # feedback module: optimizer step
    EVALUATE = "E"  # source, block: one evaluation batch
    TALLY = "T"  # block: close the evaluation of a split
    SNAPSHOT = "S"  # block, feedback module: copy the state
    HAND_OVER = "H"  # block, feedback module: send the state to who goes on with a copy of it
    JOIN = "J"  # block, feedback module: take a state and go on from it
    RESEND = "N"  # block, feedback module: send again what is under way to one that is new
    LEAVE = "Q"  # all: say that nothing comes any more


class Operation(NamedTuple):
    """One entry of an actor's program.

    Attributes:
        shard: shard of the step, or number of the evaluation batch.
        step: of the work; a delayed gradient is of an earlier step than the update it enters.
        origin: block whose loss a gradient, or whose unit the weights, come from.
        split: data split of an evaluation.
        to: whom a state, or what is under way, is sent.
    """

    kind: Kind
    step: int
    shard: int = 0
    origin: int = 0
    split: str = ""
    to: str = ""


class Span(NamedTuple):
    """What one operation took, in Unix nanoseconds.

    It began by waiting `waited` for its message, and ended by waiting `blocked` for room at the
    next block.
    """

    kind: str
    step: int
    shard: int
    started: int
    ended: int
    waited: int
    blocked: int


class Doing(NamedTuple):
    """What an actor does at the moment.

    Attributes:
        operation: None between chunks.
        seconds: of work on it so far, without waiting.
        waiting: whether it waits for a message or for room.
        longest: seconds that an operation of its kind has taken here at most; None for the first.
    """

    operation: Operation | None
    seconds: float
    waiting: bool
    longest: float | None


@dataclass
class Report:
    """What an actor returns for one chunk of its program; with an error, what it did before.

    Attributes:
        snapshots: by step, as `actors.wire` encodes them.
    """

    spans: list[Span] = field(default_factory=list)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: list[tuple[int, str, dict[str, float]]] = field(default_factory=list)
    snapshots: dict[int, Arrays] = field(default_factory=dict)
    bytes_sent: int = 0
    error: UserError | None = None
