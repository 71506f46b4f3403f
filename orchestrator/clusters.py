"""The description of a cluster that the simulator predicts for: a YAML file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from learning.bounds import Bandwidth, Count, Factor, Kept, Rate, SecondsFrom0, Share
from learning.errors import UserError, named, shown
from learning.settings import Settings
from learning.yaml_files import read_yaml


class PathSettings(Settings):
    """What a message meets on its way out of a device or node, in each direction."""

    bandwidth: Bandwidth = Field(description="bytes/s; .inf for a free path")
    latency: SecondsFrom0 = Field(default=0.0, description="s a message")


class MessageSettings(Settings):
    """CPU time of one message outside the operations that send and take it.

    Sending is a part of the operation that sends. Receiving comes between arrival and delivery.
    Daemons work beside both, for instance those of Ray's object store: they delay nobody unless
    all cores are busy.
    """

    send: SecondsFrom0 = Field(default=0.0, description="s a message")
    send_per_byte: SecondsFrom0 = Field(default=0.0, description="s a byte")
    receive: SecondsFrom0 = Field(default=0.0, description="s a message")
    receive_per_byte: SecondsFrom0 = Field(default=0.0, description="s a byte")
    daemons: SecondsFrom0 = Field(default=0.0, description="s a message")


class ClusterDescription(Settings):
    """Equal nodes with equal devices.

    A device is one accelerator, or one core of a CPU node. Operations of the actors on one
    accelerator run one at a time, in the order in which they become ready; those on a CPU node
    share its cores evenly, as an operating system lets them.

    Attributes:
        kind: `accelerator` or `cpu`.
        nodes: how many.
        devices: of one node.
        speed: of one device, relative to the machine on which the costs were measured.
        overhead: seconds that each operation takes besides its measured time.
        within: the way between two actors on one node: in and out of each device, or through the
            memory of a CPU node.
        between: the way between two nodes: one port out of, and one into, each node.
        message: CPU time of a message.
        background: cores of each CPU node that daemons use all the time, in cores.
        contention: how much slower each core of a CPU node is when all are busy, as a share.
        crowding: how much slower its cores are when twice as many threads are ready as there are
            cores, as a share; between that and no more threads than cores in proportion.
    """

    kind: Literal["accelerator", "cpu"] = "accelerator"
    nodes: Count = 1
    devices: Kept = 1
    speed: Factor = 1.0
    overhead: SecondsFrom0 = 0.0
    within: PathSettings = PathSettings(bandwidth=float("inf"))
    between: PathSettings = PathSettings(bandwidth=float("inf"))
    message: MessageSettings = MessageSettings()
    background: Rate = 0.0
    contention: Share = 0.0
    crowding: Share = 0.0

    @property
    def total(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file.

        Raises:
            UserError: when it cannot be read or does not describe a cluster.
        """
        tree = read_yaml(path)
        if not isinstance(tree, dict):
            raise UserError(f"{named(path)} describes no cluster: write key: value")
        try:
            made = cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                reason = f"{key} is unknown: see docs/simulator.md for all keys"
            elif first["type"] == "missing":
                reason = f"{key} is missing: set it"
            else:
                message = first["msg"][0].lower() + first["msg"][1:]
                reason = f"{key} = {shown(first['input'])} is not possible: {message}"
            raise UserError(f"{named(path)}: {reason}") from error
        if made.background >= made.devices:
            raise UserError(
                f"{named(path)}: background = {made.background:g} leaves nothing of "
                f"{made.devices} cores: set it lower than devices"
            )
        return made
