"""Actor processes that serve one case after the other: starting them is what takes the time.

Those that are lost on the way have successors, as in any chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from actors.shells import BatchSettings, actor_classes
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.lane import cast
from orchestrator.settings import RecoverySettings, SourcePlace, Transport
from tests.orchestrator.engines import EVALUATION_BATCH, Case, start_chain

CPUS = 0.25  # of each block
HELD = 16  # messages of a channel at most, in all cases: window times shards


class Processes:
    """Chains of actors by what they consist of, each for one case at a time."""

    def __init__(self) -> None:
        self._chains: dict[tuple[int, int, SourcePlace], Chain] = {}

    @property
    def reserved(self) -> float:
        """CPUs of all of them."""
        return sum(CPUS * blocks for blocks, _, _ in self._chains)

    @contextmanager
    def engine(
        self,
        case: Case,
        window: int = 2,
        transport: Transport = "object_store",
        source: SourcePlace = "block1",
        recovery: RecoverySettings | None = None,
    ) -> Iterator[RayEngine]:
        """An engine for a case, of processes that served others before where there are some."""
        own = replace(case, cpus=CPUS)
        program, _, _ = own.build()
        assert window * case.shards <= HELD
        shape = program.blocks, program.feedback_modules, source
        chain = self._chains.pop(shape, None)
        if chain is None:
            chain = start_chain(own, HELD // case.shards, source=source)
        try:
            recast(chain, own, window, transport, source)
            engine = RayEngine(chain, recovery)
            yield engine
        except BaseException:  # who knows what the actors are at
            chain.close()
            raise
        engine._elasticity.close()
        self._chains[shape] = chain

    def close(self) -> None:
        """End all processes."""
        while self._chains:
            self._chains.popitem()[1].close()


def recast(
    chain: Chain, case: Case, window: int, transport: Transport, source: SourcePlace
) -> None:
    """Make the actors of a chain into those of a case, all learners built anew."""
    program, plan, blocks = case.build()
    chain.program, chain.plan, chain.transport = program, plan, transport
    chain._messages = window * program.settings.shards
    batches = BatchSettings(case.data, case.augment, EVALUATION_BATCH)
    chain.cast = partial(cast, program, blocks, batches, actor_classes(2 * HELD), 1, source)
    (lane,) = chain.lanes
    actors = chain.cast(1)
    for actor, before in zip(actors, lane.actors, strict=True):
        actor.handle = before.handle
    lane.actors = actors
    chain.renew()
