"""Lanes: full copies of the chain of blocks, each of actors in placement groups of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.carrying import Carried
from actors.shell import Identity
from actors.shells import ActorClasses, BatchSettings
from actors.sockets import Endpoint
from learning.build import Program
from learning.messages import block_name, feedback_name
from learning.units import Unit
from orchestrator.dependencies import LANE_MARK, SOURCE
from orchestrator.losses import NoRoomError
from orchestrator.placement_groups import Placement
from orchestrator.settings import SourcePlace


@dataclass(eq=False)
class Actor:
    """One process of the chain.

    Attributes:
        learner: what its learner is called in its lane; `source` of who makes batches.
        lane: number of the lane.
        kind: its class, as Ray knows it.
        block: in whose bundle it is, of which it takes `share`.
        arguments: what its learners are built from.
        handle: None while it is lost.
        endpoint: where it takes direct messages, if it does.
    """

    learner: str
    lane: int
    kind: Any
    block: int
    share: float
    arguments: tuple[Any, ...]
    handle: Any = None
    identity: Identity | None = None
    endpoint: Endpoint | None = None

    @property
    def name(self) -> str:
        """Of all actors of a run no two have the same, but for one and its successor."""
        return self.learner if self.lane == 1 else f"{self.learner}{LANE_MARK}{self.lane}"

    @property
    def learns(self) -> bool:
        """Whether it has a learner."""
        return self.learner != SOURCE

    @property
    def is_block(self) -> bool:
        """Whether its learner is a block's."""
        return self.learner == block_name(self.block)

    @property
    def peer(self) -> Any:
        """Where messages to it are sent."""
        return self.endpoint or self.handle

    def start(self, placement: Placement) -> None:
        """Start its process."""
        options = placement.options(self.block, share=self.share)
        # Ray must never re-run a training step on a reset actor.
        settings = {"max_restarts": 0, "max_task_retries": 0, **options}
        self.handle = self.kind.options(**settings).remote()
        self.identity = self.endpoint = None


Cast = Callable[[int], list[Actor]]
"""The actors of the lane of this number, not started."""


@dataclass(eq=False)
class Lane:
    """One copy of the chain.

    Attributes:
        number: from 1; of a lane that has left it is given again.
    """

    number: int
    actors: list[Actor] = field(repr=False)
    placement: Placement = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether none of its actors is lost."""
        return all(actor.handle is not None for actor in self.actors)

    def start(self) -> None:
        """Start the processes of all actors that are missing."""
        for actor in self.actors:
            if actor.handle is None:
                actor.start(self.placement)

    def wait_for_room(self, patience: float, deadline: float) -> None:
        """Wait until there is room again for every actor that is missing.

        Args:
            patience: how many seconds that may take for all of them.
            deadline: when they are over, by `time.monotonic`.

        Raises:
            NoRoomError: when there is none in time.
        """
        for actor in self.actors:
            if actor.handle is None:
                try:
                    self.placement.wait(actor.block, deadline)
                except TimeoutError as error:
                    raise NoRoomError(
                        f"the cluster had no room for {actor.name} again within "
                        f"engine.recovery.patience = {patience:g} s: add a node, or resume the run "
                        "on another cluster"
                    ) from error

    def peer(self, learner: str) -> Any:
        """Where messages to a learner of this lane are sent."""
        (found,) = (actor for actor in self.actors if actor.learner == learner)
        return found.peer


def cast(
    program: Program,
    blocks: Sequence[Sequence[Unit]],
    batches: BatchSettings,
    classes: ActorClasses,
    threads: int,
    source: SourcePlace,
    lane: int,
) -> list[Actor]:
    """The actors of one lane, not started."""
    # A bundle holds a block, and in half of it its feedback module where there is one.
    share = 0.5 if program.feedback_modules else 1.0
    actors: list[Actor] = []
    if source == "actor":
        actors.append(Actor(SOURCE, lane, classes.source, 1, 0.0, (program, batches, 1)))
    for k, units in enumerate(blocks, start=1):
        later = [Carried(after) for after in blocks[k:]] if program.rule.looks_ahead else []
        own = batches if k == 1 and source == "block1" else None
        arguments = (program, k, Carried(units), later, threads, own, lane)
        actors.append(Actor(block_name(k), lane, classes.block, k, share, arguments))
    for k in range(1, program.feedback_modules + 1):
        arguments = (program, k, threads, lane)
        actors.append(Actor(feedback_name(k), lane, classes.feedback, k, share, arguments))
    return actors
