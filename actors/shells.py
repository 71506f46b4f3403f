"""The Ray actors: thin shells around executors, one process each."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import ray
import torch
from ray.actor import ActorClass
from torch import Tensor

from actors.execution import Executor
from actors.executors import BlockExecutor, FeedbackExecutor, Source, SourceExecutor
from actors.mailbox import Mailbox
from actors.shell import MAIL, Shell
from learning.build import Program, build_block, build_feedback
from learning.data import AugmentSettings, Batches, Dataset, DataSettings, load_dataset
from learning.errors import UserError
from learning.fingerprints import data_fingerprint
from learning.units import Unit

_MORE_MAIL = 4  # threads for messages that nobody holds back, and for `stop`


class BatchSettings(NamedTuple):
    """What batches are made from: settings of data to be loaded where they are made, or the data.

    Attributes:
        evaluation_batch: rows of a batch of an evaluation.
        fingerprint: of data that are loaded where batches are made: another node may have others
            under the same path.
    """

    data: DataSettings | Dataset
    augment: AugmentSettings
    evaluation_batch: int
    fingerprint: Mapping[str, str] | None = None

    def source(self, program: Program) -> Source:
        """Load the data.

        Raises:
            UserError: when they are not those of the run.
        """
        data, settings = self.data, program.settings
        if not isinstance(data, Dataset):
            data = load_dataset(data)
            here = data_fingerprint(data) if self.fingerprint is not None else {}
            other = [
                name for name, value in (self.fingerprint or {}).items() if here[name] != value
            ]
            if other:
                raise UserError(
                    f"{platform.node()}, where batches are made, has other data under the paths of "
                    f"data ({', '.join(other)}): give all nodes the same files"
                )
        batches = Batches(
            data,
            seed=settings.seed,
            batch=settings.batch,
            shards=settings.shards,
            augment=self.augment,
        )
        return Source(batches, self.evaluation_batch)


class _Source(Shell):
    @ray.method
    def build(
        self, incarnation: int, keep: bool, program: Program, batches: BatchSettings, threads: int
    ) -> None:
        """Make the executor of an incarnation of the chain."""
        self._let_go()
        self._begin(incarnation, SourceExecutor(batches.source(program), Mailbox(), threads))


class _Learning(Shell):
    """What blocks and feedback modules share: states."""

    @property
    def _learner(self) -> BlockExecutor | FeedbackExecutor:
        executor = self._executor
        assert isinstance(executor, BlockExecutor | FeedbackExecutor)
        return executor

    @ray.method
    def load(self, state: dict[str, Tensor], step: int) -> None:
        """Load a snapshot; training goes on at `step`."""
        self._learner.load(state, step)

    @ray.method
    def take_learnt(self, state: dict[str, Tensor], finished: int) -> None:
        """Load what a snapshot has learnt up to step `finished`, without what was under way."""
        self._learner.take_learnt(state, finished)

    @ray.method
    def finished(self) -> int:
        """The step of the last update, -1 before the first."""
        return -1 if self._life is None else self._learner.finished

    def _become(self, incarnation: int, keep: bool, make: Callable[[], Executor]) -> None:
        """Become a part of another incarnation.

        Args:
            keep: what was learnt in the last one; an unfinished step is forgotten in any case.
        """
        keep = keep and self._life is not None
        learnt = (self._learner.state(), self._learner.finished) if keep else None
        self._let_go()
        self._begin(incarnation, make())
        if learnt is not None:
            self._learner.take_learnt(*learnt)


class _Block(_Learning):
    @ray.method
    def build(
        self,
        incarnation: int,
        keep: bool,
        program: Program,
        k: int,
        units: Sequence[Unit],
        later: Sequence[Sequence[Unit]],
        threads: int,
        batches: BatchSettings | None,
        lane: int,
    ) -> None:
        """Make the learner and executor of an incarnation of the chain.

        Args:
            keep: what was learnt in the last one.
            batches: from which block 1 makes its own.
            lane: number of the lane that it is in.
        """

        def make() -> Executor:
            torch.set_num_threads(threads)
            program.surroundings.apply()
            learner = build_block(program, k, units, self._device, later)
            source = None if batches is None else batches.source(program)
            delay = program.feedback_delay
            return BlockExecutor(learner, delay, Mailbox(), threads, source, lane)

        self._become(incarnation, keep, make)


class _Feedback(_Learning):
    @ray.method
    def build(
        self, incarnation: int, keep: bool, program: Program, k: int, threads: int, lane: int
    ) -> None:
        """Make the learner and executor of an incarnation of the chain, as in a block."""

        def make() -> Executor:
            torch.set_num_threads(threads)
            program.surroundings.apply()
            learner = build_feedback(program, k, self._device)
            top = k == program.feedback_modules or not program.feedback_chain
            return FeedbackExecutor(learner, top=top, mailbox=Mailbox(), threads=threads, lane=lane)

        self._become(incarnation, keep, make)


class ActorClasses(NamedTuple):
    """The classes of a run's actors, as Ray knows them."""

    source: ActorClass[_Source]
    block: ActorClass[_Block]
    feedback: ActorClass[_Feedback]


def actor_classes(held: int) -> ActorClasses:
    """Actors of which blocks, who take activations, can hold `held` messages back at once."""

    def remote(shell: type[Shell], held: int) -> Any:
        # Ray types this form of the call without options only.
        return cast(Any, ray.remote)(concurrency_groups={MAIL: held + _MORE_MAIL})(shell)

    return ActorClasses(remote(_Source, 0), remote(_Block, held), remote(_Feedback, 0))
