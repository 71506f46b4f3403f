"""What all Ray actors of a chain share: mail, connections, lives, and running a chunk."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
import torch

from actors import wire
from actors.direct import DirectChannel, make_sure_of
from actors.execution import Executor
from actors.mailbox import StoppedError
from actors.memory import keep_freed_memory
from actors.operations import Doing, Operation, Report
from actors.receiver import Receiver
from actors.sockets import Endpoint, PeerLostError, UnreachableError
from actors.transport import Channel, ObjectStoreChannel
from learning.messages import Key

MAIL = "mail"
"""The concurrency group in which messages arrive while the program runs."""


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


class Shell:
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

    @ray.method(concurrency_group=MAIL)
    def reach(self, peers: Sequence[Endpoint]) -> None:
        """Make sure that direct messages from here would reach others, whom it leaves unaware.

        Raises:
            UnreachableError: when they would not.
        """
        receiver = self._receiver
        assert receiver is not None, "who asks is told where to answer"
        me = receiver.endpoint
        for peer in peers:
            make_sure_of(me.name, me.node, peer, self._secret)

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
            except UnreachableError as error:
                raise PeerLostError(error.peer) from error
        return self._executor.run(operations)
