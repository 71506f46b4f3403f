"""Subspace networks: a transformer's residual stream travels as coordinates in a fixed subspace.

Ramasinghe et al. 2025, "Protocol Models", arXiv 2506.01260. With E a fixed table of embeddings, U a
fixed orthonormal basis, and all that is written to the residual stream kept in the span of U,

    h = E[tokens] + U c        and so        c = U^T (h - E[tokens])

holds everything about h: (B, T, r) coordinates and (B, T) tokens stand for (B, T, D).
Shapes: D width of the stream, r rank, V vocabulary.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from learning.memory import check_fits
from learning.messages import Message
from learning.numerics import seeded
from learning.policies.codecs import Codec

_CPU = torch.device("cpu")
SMALLER = "use a smaller width, or data with fewer words"
_DEVIATION = 0.02  # of E, that of all embeddings


@cache
def basis(
    width: int, rank: int, device: torch.device = _CPU, dtype: torch.dtype = torch.float64
) -> Tensor:
    """U (D, r), orthonormal columns: drawn from width and rank alone.

    Cosines (a DCT) of r drawn frequencies, each row under a drawn sign: as dense as a random basis,
    and without a factorisation, whose last bits would depend on the library and on its threads.
    """
    if (device, dtype) != (_CPU, torch.float64):
        return basis(width, rank).to(device, dtype)
    with seeded(_CPU, "subspace", width, rank):
        frequencies = torch.randperm(width)[:rank].double()
        signs = torch.randint(2, (width, 1)).double() * 2 - 1
    position = (torch.arange(width, dtype=torch.float64) + 0.5) * (math.pi / width)
    norm = ((2 - (frequencies == 0).double()) / width).sqrt()
    return signs * torch.cos(position[:, None] * frequencies) * norm


def table(width: int, vocabulary: int) -> Tensor:
    """E (V, D), normal, float32: a function of its arguments alone."""
    with seeded(_CPU, "subspace table", width, vocabulary):
        return _DEVIATION * torch.randn(vocabulary, width)


@torch.no_grad()
def project_(weight: Tensor, rank: int, dim: int = 0) -> None:
    """Project a parameter that writes the residual stream: W <- U U^T W, in place.

    To be called after every update, because optimizers that scale elements leave the subspace.

    Args:
        weight: dimension `dim` has size D.
        rank: r.
        dim: 0 for the weight (D, ...) and bias (D,) of a linear layer that writes the stream; -1
            for learned embeddings (..., D).
    """
    rows = weight.movedim(dim, -1)
    u = basis(rows.shape[-1], rank, weight.device, weight.dtype)
    weight.copy_((rows @ u @ u.T).movedim(-1, dim))


class FixedEmbedding(nn.Module):
    """E[tokens], the part of the stream that nobody learns: int64 (B, T) to (B, T, D).

    A buffer, so that saved weights are all there is to know about the network.

    Attributes:
        rank: of the subspace that the rest of the stream stays in.
    """

    fixed_buffers = ("table",)
    table: Tensor

    def __init__(self, width: int, rank: int, vocabulary: int) -> None:
        super().__init__()
        self.rank = rank
        check_fits(8 * width * vocabulary, f"embeddings of {vocabulary:,} words", SMALLER)
        self.register_buffer("table", table(width, vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def rank_of(network: nn.Module) -> int | None:
    """The rank of the subspace that a network's residual stream stays in, None without one."""
    return next((m.rank for m in network.modules() if isinstance(m, FixedEmbedding)), None)


class Subspace(Codec):
    """The codec of one residual stream, exact to rounding for networks that stay in the subspace.

    The same (width, rank, vocabulary) give the same basis and table in every process.
    """

    def __init__(self, width: int, rank: int, vocabulary: int) -> None:
        self.width, self.rank = width, rank
        self.table = table(width, vocabulary)

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        """Coordinates (B, T, r) and tokens (B, T) of h (B, T, D).

        Without tokens the tensor is taken as it is. So travel gradients: of dL/dh only the part
        in the subspace reaches parameters, because all writes to the stream are projected.
        """
        x = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        u = self._basis_for(x)
        if tokens is None:
            return {name: x @ u}
        return {name: (x - self._embed(tokens, x.dtype)) @ u, f"{name}.tokens": tokens}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        c, tokens = message[name], message.get(f"{name}.tokens")
        x = c @ self._basis_for(c).T
        if tokens is not None:
            x = x + self._embed(tokens, x.dtype)
        return x.to(dtype)

    def _embed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        if self.table.device != tokens.device:
            self.table = self.table.to(tokens.device)
        return self.table[tokens].to(dtype)

    def _basis_for(self, tensor: Tensor) -> Tensor:
        return basis(self.width, self.rank, tensor.device, tensor.dtype)
