"""The Ray actors: thin shells around executors, one process each."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import ray
import torch
from ray.actor import ActorClass
from torch import Tensor

from actors import wire
from actors.direct import DirectChannel
from actors.execution import Executor
from actors.executors import BlockExecutor, FeedbackExecutor, Source, SourceExecutor
from actors.mailbox import Mailbox, StoppedError
from actors.memory import keep_freed_memory
from actors.operations import Doing, Operation, Report
from actors.receiver import Receiver
from actors.sockets import Endpoint, PeerLostError
from actors.transport import Channel, ObjectStoreChannel
from learning.build import Program, build_block, build_feedback
from learning.data import AugmentSettings, Batches, Dataset, DataSettings, load_dataset
from learning.errors import UserError
from learning.messages import Key
from learning.units import Unit

MAIL = "mail"
"""The concurrency group in which messages arrive while the program runs."""

_MORE_MAIL = 4  # threads for messages that nobody holds back, and for `stop`


def actor_device() -> torch.device:
    """The GPU that Ray assigned to this actor, else the CPU."""
    return torch.device("cuda:0") if ray.get_gpu_ids() else torch.device("cpu")


class Identity(NamedTuple):
    """Where an actor is: ids of its node and of its process there."""

    node: str
    process: int


class Life(NamedTuple):
    """What an actor is in one incarnation of the chain."""

    incarnation: int
    executor: Executor


class Change(NamedTuple):
    """What changes in an actor's connections.

    Attributes:
        added: name of the receiver to (peer, window). A peer is the receiving actor, or its
            endpoint where it takes direct messages; this actor then listens as well.
        gone: names of receivers that are sent nothing more.
    """

    added: Mapping[str, tuple[Any, int | None]]
    gone: tuple[str, ...] = ()


class FencedError(RuntimeError):
    """A message of an earlier incarnation of the chain: it is refused."""


class _Shell:
    """What all actors share: mail, connections, running a chunk. Holds its executor.

    An actor may outlive the chain that it was a part of: `build` makes it a part of another.
    """

    _life: Life | None = None
    _receiver: Receiver | None = None  # of direct messages, once it listens
    _secret = b""

    def __init__(self) -> None:
        keep_freed_memory()
        self._device = actor_device()

    @property
    def _executor(self) -> Executor:
        assert self._life is not None, "an actor is built before anything else"
        return self._life.executor

    def _let_go(self) -> None:
        """Leave nothing of the last incarnation: a new learner needs the memory of the old one."""
        life, self._life = self._life, None
        if life is None:
            return
        life.executor.abandon()
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
        del life
        gc.collect()  # mailbox and receiver know each other

    def _begin(self, incarnation: int, executor: Executor) -> None:
        """Become a part of an incarnation of the chain."""
        self._life = Life(incarnation, executor)

    @ray.method(concurrency_group=MAIL)
    def deliver(self, key: Key, arrays: wire.Arrays, hold: bool, incarnation: int) -> None:
        """Receive a message; with `hold`, return only when the program has taken it."""
        life = self._life  # once: another thread may build the next one
        if life is None or incarnation != life.incarnation:
            now = "none" if life is None else life.incarnation
            raise FencedError(f"{key} of incarnation {incarnation} in {now}")
        mailbox = life.executor.mailbox
        try:
            mailbox.put(key, wire.decode(arrays, self._device))
        except Exception as error:
            mailbox.fail(error)  # the sender may not look, and the program waits for this message
            raise
        if hold:
            mailbox.wait_taken(key)

    @ray.method(concurrency_group=MAIL)
    def stop(self, incarnation: int) -> None:
        """End the chunk under way, which then reports what it has done."""
        life = self._life
        if life is not None and life.incarnation == incarnation:
            life.executor.mailbox.fail(StoppedError())

    @ray.method(concurrency_group=MAIL)
    def abandon(self, incarnation: int) -> None:
        """End the chunk under way, also where it waits for an actor that is out of reach."""
        life = self._life
        if life is not None and life.incarnation == incarnation:
            life.executor.abandon()

    @ray.method(concurrency_group=MAIL)
    def identify(self) -> Identity:
        """Where this actor is; it answers whatever its program does."""
        return Identity(ray.get_runtime_context().get_node_id(), os.getpid())

    @ray.method(concurrency_group=MAIL)
    def doing(self) -> Doing:
        """What this actor's program does."""
        life = self._life
        return Doing(None, 0.0, True, None) if life is None else life.executor.doing()

    @ray.method
    def clear(self) -> None:
        """Drop the messages of an earlier run that nobody took."""
        self._executor.mailbox.clear()

    @ray.method
    def listen(self, name: str, secret: bytes, between_nodes: bool) -> Endpoint:
        """Take direct messages from now on, as the actor of this name."""
        node = ray.get_runtime_context().get_node_id()
        host = ray.util.get_node_ip_address() if between_nodes else None
        self._secret = secret
        self._receiver = Receiver(
            name, self._executor.mailbox, self._device, secret, node=node, host=host
        )
        return self._receiver.endpoint

    @ray.method
    def connect(self, change: Change) -> None:
        """Change this actor's connections."""
        self._rewire(change)

    def _rewire(self, change: Change) -> None:
        added = {name: self._channel(*channel) for name, channel in change.added.items()}
        self._executor.connect(added, change.gone)

    def _channel(self, peer: Any, window: int | None) -> Channel:
        if not isinstance(peer, Endpoint):
            assert self._life is not None
            return ObjectStoreChannel(peer, window, self._life.incarnation)
        assert self._receiver is not None
        me = self._receiver.endpoint
        return DirectChannel(me.name, me.node, peer, self._secret, window)

    @ray.method
    def run(self, operations: Sequence[Operation], change: Change | None = None) -> Report:
        """Execute a chunk of this actor's program.

        Args:
            change: of the connections, before it.

        Raises:
            PeerLostError: when one that is new cannot be reached.
        """
        if change is not None:
            try:
                self._rewire(change)
            except UserError as error:
                raise PeerLostError(" or ".join(change.added)) from error
        return self._executor.run(operations)


class BatchSettings(NamedTuple):
    """What batches are made from: settings of data to be loaded where they are made, or the data.

    Attributes:
        evaluation_batch: rows of a batch of an evaluation.
    """

    data: DataSettings | Dataset
    augment: AugmentSettings
    evaluation_batch: int

    def source(self, program: Program) -> Source:
        """Load the data."""
        data, settings = self.data, program.settings
        batches = Batches(
            data if isinstance(data, Dataset) else load_dataset(data),
            seed=settings.seed,
            batch=settings.batch,
            shards=settings.shards,
            augment=self.augment,
        )
        return Source(batches, self.evaluation_batch)


class _Source(_Shell):
    @ray.method
    def build(
        self, incarnation: int, keep: bool, program: Program, batches: BatchSettings, threads: int
    ) -> None:
        """Make the executor of an incarnation of the chain."""
        self._let_go()
        self._begin(incarnation, SourceExecutor(batches.source(program), Mailbox(), threads))


class _Learning(_Shell):
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

    def remote(shell: type[_Shell], held: int) -> Any:
        # Ray types this form of the call without options only.
        return cast(Any, ray.remote)(concurrency_groups={MAIL: held + _MORE_MAIL})(shell)

    return ActorClasses(remote(_Source, 0), remote(_Block, held), remote(_Feedback, 0))
