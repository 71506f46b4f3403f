"""A decoder-only transformer for tokens: scores of every position, from what it may see.

Shapes: B batch, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Depth, Flag, Share, Size, Width
from learning.errors import UserError
from learning.networks.attention import (
    Rotary,
    TransformerBlock,
    check_heads,
    initialise,
    learned_positions,
)
from learning.policies.subspace import FixedEmbedding, project_
from learning.settings import Settings


class GPTSettings(Settings):
    """A transformer on tokens: units `embed`, `block1`, ..., `head`.

    RMSNorm before attention and before the feed-forward layer, GELU, no biases.
    """

    kind: Literal["gpt"] = "gpt"
    width: Width = 128
    depth: Depth = Field(default=4, description="number of transformer blocks")
    heads: Depth = Field(default=4, description="divides the width")
    mlp_ratio: Size = Field(default=4.0, description="hidden features, in widths")
    positions: Literal["rotary", "learned"] = "rotary"
    causal: Flag = Field(default=True, description="no token sees the ones after it")
    tied: Flag = Field(default=False, description="embedding and unembedding are one matrix")
    dropout: Share = 0.0
    subspace: Width | None = Field(
        default=None, description="rank of the subspace that the residual stream stays in"
    )

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for `input_shape` = (T,) tokens of a vocabulary of `classes`."""
        if len(input_shape) != 1:
            raise UserError(
                f"network.kind = gpt needs rows of tokens (T,), not {input_shape}: use data.kind = "
                "text or reversal, or another network.kind"
            )
        check_heads(self.width, self.heads)
        self._check_subspace()
        size = self.width // self.heads
        if self.positions == "rotary" and size % 2:
            raise UserError(
                f"network.width / network.heads = {size} is odd, and network.positions = rotary "
                "turns pairs of features: change one of them or use network.positions = learned"
            )
        (context,) = input_shape
        hidden = max(1, round(self.mlp_ratio * self.width))
        units: OrderedDict[str, nn.Module] = OrderedDict()
        embed = _Embedding(self, classes, context)
        units["embed"] = embed
        for i in range(1, self.depth + 1):
            units[f"block{i}"] = TransformerBlock(
                self.width,
                self.heads,
                hidden=hidden,
                norm=nn.RMSNorm,
                bias=False,
                dropout=self.dropout,
                causal=self.causal,
                # One a block, or the tables would be tensors that several blocks own.
                rotary=Rotary(context, size) if self.positions == "rotary" else None,
                subspace=self.subspace,
            )
        head = _TokenHead(self.width, classes)
        units["head"] = head
        model = nn.Sequential(units)
        initialise(model, self.depth)
        if self.tied:
            head.unembed.weight = embed.tokens.weight
        return model

    def _check_subspace(self) -> None:
        if self.subspace is None:
            return
        if self.subspace > self.width:
            raise UserError(
                f"network.subspace = {self.subspace} is above network.width = {self.width}: use a "
                f"rank up to {self.width}; far below, say {max(1, self.width // 8)}, it compresses"
            )
        if self.dropout:
            raise UserError(
                f"network.dropout = {self.dropout} drops single features of the residual stream, "
                f"which then leaves the subspace of network.subspace = {self.subspace}: set "
                "network.dropout = 0 or network.subspace = null"
            )
        if self.tied:
            raise UserError(
                f"network.subspace = {self.subspace} keeps learned embeddings in a subspace, and "
                "network.tied = true would keep the unembedding there too: set network.tied = "
                "false or network.subspace = null"
            )


class _Embedding(nn.Module):
    """Tokens, learned positions if any, dropout: int64 (B, T) to (B, T, C).

    With a subspace, a fixed part too, and the learned ones stay in it.
    """

    def __init__(self, settings: GPTSettings, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, settings.width)
        learned = settings.positions == "learned"
        self.positions = learned_positions(context, settings.width) if learned else None
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        self.fixed = None
        if settings.subspace is not None:
            self.fixed = FixedEmbedding(settings.width, settings.subspace, vocabulary)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.tokens(tokens_BT)
        if self.positions is not None:
            x_BTC = x_BTC + self.positions[: tokens_BT.shape[1]]
        if self.fixed is not None:
            x_BTC = x_BTC + self.fixed(tokens_BT)
        return self.dropout(x_BTC)

    def constrain_(self) -> None:
        """Keep what is learned in the subspace, if there is one."""
        if self.fixed is not None:
            for learned in (self.tokens.weight, self.positions):
                if learned is not None:
                    project_(learned, self.fixed.rank, -1)


class _TokenHead(nn.Module):
    """Final norm and unembedding: (B, T, C) to scores (B, T, V)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.unembed(self.norm(x_BTC))
