"""What a block sends: addresses, keys and codes of its messages, and what is still under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from learning.credit import Credit
from learning.learners.publishing import Publication
from learning.messages import InFlight, Key, Message, Post, block_name, feedback_name, outgoing
from learning.policies.codecs import Codec
from learning.units import Unit


@dataclass
class Outbox:
    """Writes the messages of block `index` of `last`.

    Attributes:
        credit: says when a gradient is taken.
        codec: how activations and gradients are written in messages of training.
        image: whether the network's input goes along with the activations.
        publications: whose objectives read weights of this block.
        in_flight: what is taken in a later step than it was sent in.
    """

    index: int
    last: int
    credit: Credit
    codec: Codec
    image: bool
    publications: Sequence[Publication]
    in_flight: InFlight = field(default_factory=InFlight)

    def activation(self, key: Key, h: Tensor, message: Message, along: Message) -> list[Post]:
        """What block index+1 trains on; nothing from block K.

        Args:
            key: of the message.
            h: (b, ...), what it gets instead of the block's output or as such.
            message: what the block itself was sent.
            along: what the rule sends besides.
        """
        if self.index == self.last:
            return []
        tokens = message["x"] if self.index == 1 else message.get("x.tokens")
        if tokens is not None and tokens.is_floating_point():
            tokens = None  # of a network that does not read tokens
        coded = self.codec.encode("x", h.detach(), tokens)
        return [Post(block_name(self.index + 1), key, self._on({**coded, **along}, message))]

    def evaluated(self, h: Tensor, message: Message) -> Message:
        """What block index+1 is evaluated on: not coded, as the exported network would have it."""
        return self._on({"x": outgoing(h)}, message)

    def gradient(self, to: int, step: int, shard: int, origin: int, gradient: Tensor) -> Post:
        """The gradient of block `origin`'s loss, on a shard of `step`, for block `to`."""
        now = step + self.credit.delay(self.index, self.last)
        taken = step + self.credit.delay(to, self.last)
        key = Key("g", step, shard, origin)
        coded = self.codec.encode("gradient", gradient)
        post = Post(block_name(to), key, coded, taken if taken > now else None)
        self.in_flight.keep([post], now)
        return post

    def errors(self, step: int, shard: int, gradient: Tensor) -> list[Post]:
        """The gradient at block K's output, for every other block where the credit wants that."""
        if not self.credit.broadcast:
            return []
        others = range(1, self.index)
        return [self.gradient(k, step, shard, self.index, gradient) for k in others]

    def readout(self, step: int, shard: int, readout: Message | None) -> list[Post]:
        """What the block's feedback module learns from."""
        if readout is None:
            return []
        return [Post(feedback_name(self.index), Key("readout", step, shard), readout)]

    def weights(self, units: Sequence[Unit], step: int) -> list[Post]:
        """The state of units that other blocks' objectives read from time to time."""
        posts = [p.post(units, self.index, step) for p in self.publications if p.due(step)]
        self.in_flight.keep(posts, step)
        return posts

    def input_image(self, message: Message) -> Tensor | None:
        """The network's input (b, ...), where the rule sends it along."""
        if not self.image:
            return None
        return message["x"] if self.index == 1 else message.get("image")

    def _on(self, activation: Message, message: Message) -> Message:
        on = {**activation, "y": outgoing(message["y"])}
        image = self.input_image(message)
        if image is not None and self.index + 1 < self.last:  # block K has the task loss
            on["image"] = outgoing(image)
        return on
