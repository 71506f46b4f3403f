"""Readouts of token models: own transformer blocks, then an unembedding that may be shared."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.errors import UserError
from learning.messages import Message
from learning.objectives.base import Assessment, Objective, Told, classification_loss, wide

ReadoutKind = Literal["shared", "private", "random"]


class UnembeddedClassifier(Objective):
    """Cross-entropy of scores = scale * (W norm(blocks(h))) + bias, for tokens h (b, T, D).

    SOLO (arXiv 2609.35440). W (V, D) is that of the network's last unit, taken from time to time
    and read only (`shared`), or a parameter (`private`), or drawn once (`random`). Blocks, RMS
    norm, scale (an inverse temperature) and bias are the block's own. With one label a row, the
    tokens are averaged before W.
    """

    fixed_buffers = ("unembedding",)  # changed by `take` only

    def __init__(
        self,
        blocks: nn.Module,
        shape: tuple[int, ...],
        classes: int,
        *,
        kind: ReadoutKind,
        per_token: bool,
    ) -> None:
        super().__init__()
        self.blocks, self.shared, self.per_token = blocks, kind == "shared", per_token
        self.norm = nn.RMSNorm(shape[-1])
        self.scale = nn.Parameter(torch.ones(1))
        self.label_bias = nn.Parameter(torch.zeros(classes))
        matrix = torch.randn(classes, shape[-1]) / math.sqrt(shape[-1])
        if kind == "private":
            self.unembedding = nn.Parameter(matrix)
        else:
            self.register_buffer("unembedding", matrix)

    def forward(self, h: Tensor, told: Told) -> Assessment:
        z = self.norm(self.blocks(h))
        z = z if self.per_token else z.mean(1)
        scores = self.scale * wide(F.linear(z, self.unembedding)) + self.label_bias
        return Assessment(classification_loss(scores, told.y), scores)

    @torch.no_grad()
    def take(self, weights: Message) -> None:
        """Copy the unembedding out of the state of the network's last unit.

        Raises:
            UserError: when the unit has no matrix of that shape, or several.
        """
        assert self.shared
        shape = tuple(self.unembedding.shape)
        found = [w for w in weights.values() if tuple(w.shape) == shape]
        if len(found) != 1:
            sizes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in weights.items())
            raise UserError(
                f"rule.readout = shared needs one matrix of (classes, features) = {shape} in the "
                f"network's last unit, which has {sizes or 'no weights'}: use a network with one "
                "width up to its last unit, or rule.readout = private"
            )
        self.unembedding.copy_(found[0])
