"""Transformer blocks: self-attention and a feed-forward layer, each added to its input.

Shapes: B batch, T tokens, C width, H heads, D = C / H size of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.errors import UserError
from learning.memory import check_fits
from learning.policies.subspace import project_

SHORTER = "use shorter rows, or a smaller width"
_STD = 0.02
_BASE = 10_000.0


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): scores depend on where two tokens are to each other."""

    fixed_buffers = ("cos", "sin")
    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, size: int) -> None:
        super().__init__()
        check_fits(16 * context * size, f"rotary positions of {context:,} tokens", SHORTER)
        frequency = _BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        # Not part of the state: they follow from the settings.
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x_BHTD: Tensor) -> Tensor:
        """Turn pair (i, i + D/2) of the token at position t by t times the pair's frequency."""
        cos, sin = self.cos[: x_BHTD.shape[-2]], self.sin[: x_BHTD.shape[-2]]
        a, b = x_BHTD.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return turned.to(x_BHTD.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, T, C) to (B, T, C)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float,
        bias: bool,
        causal: bool,
        rotary: Rotary | None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.rotary = rotary

    def forward(self, x_BTC: Tensor) -> Tensor:
        # (B, T, 3C) to three of (B, H, T, D)
        q, k, v = self.qkv(x_BTC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        # The kernel is the caller's choice: only the MATH one has a second derivative.
        y_BHTD = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal
        )
        return self.out(y_BHTD.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A hidden layer with GELU, token by token: (B, T, C) to (B, T, C)."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTC)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward layer: (B, T, C) to (B, T, C)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        norm: Callable[[int], nn.Module],
        bias: bool,
        dropout: float = 0.0,
        causal: bool = False,
        rotary: Rotary | None = None,
        subspace: int | None = None,
    ) -> None:
        super().__init__()
        self.subspace = subspace
        self.norm1 = norm(width)
        self.attention = SelfAttention(
            width, heads, dropout=dropout, bias=bias, causal=causal, rotary=rotary
        )
        self.norm2 = norm(width)
        self.mlp = FeedForward(width, hidden, bias=bias)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.dropout(self.attention(self.norm1(x_BTC)))
        return x_BTC + self.dropout(self.mlp(self.norm2(x_BTC)))

    def constrain_(self) -> None:
        """Keep what is added to the stream in the subspace of rank `subspace`, if there is one."""
        if self.subspace is None:
            return
        for writer in (self.attention.out, self.mlp.down):
            for parameter in writer.parameters():
                project_(parameter, self.subspace)


def check_heads(width: int, heads: int) -> None:
    """Check that the width can be shared out to the heads.

    Raises:
        UserError: when it is no multiple of their number.
    """
    if width % heads:
        raise UserError(
            f"network.width = {width} is not a multiple of network.heads = {heads}: change one of "
            "them"
        )


@torch.no_grad()
def initialise(model: nn.Module, depth: int) -> None:
    """Draw the weights as GPT-2 does (Radford et al. 2019).

    Normal with deviation 0.02, biases 0. What is added to the residual stream, twice a block, is
    divided by sqrt(2 * depth), so that the stream's deviation does not grow with the depth.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith((".attention.out", ".mlp.down"))
            module.weight.normal_(std=_STD / (2 * depth) ** 0.5 if residual else _STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()


def learned_positions(tokens: int, width: int) -> nn.Parameter:
    """Positions (T, C), to be added to the tokens; drawn like all other weights."""
    check_fits(8 * tokens * width, f"learned positions of {tokens:,} tokens", SHORTER)
    return nn.Parameter(torch.randn(tokens, width) * _STD)
