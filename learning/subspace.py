"""Subspace networks: a transformer's residual stream travels as coordinates in a fixed subspace.

Ramasinghe et al. 2025, "Protocol Models", arXiv 2506.01260. With E a fixed table of embeddings, U a
fixed orthonormal basis, and all that is written to the residual stream kept in the span of U,

    h = E[tokens] + U c        and so        c = U^T (h - E[tokens])

holds everything about h: (B, T, r) coordinates and (B, T) tokens stand for (B, T, D).
Shapes: D width of the stream, r rank, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learning.codecs import Codec
from learning.errors import UserError
from learning.messages import Message
from learning.numerics import seeded


class Subspace(Codec):
    """The codec of one residual stream, and the projection that makes it lossless.

    The same (width, rank, vocabulary, seed) give the same basis and table in every process. Exact
    to rounding when every write to the stream is projected: see `project_` and `embed`.

    Attributes:
        basis: U (D, r), orthonormal columns, float64.
        table: E (V, D), normal with deviation `deviation`, float32.
    """

    def __init__(
        self, width: int, rank: int, vocabulary: int, seed: int, deviation: float = 0.02
    ) -> None:
        """Draw basis and table.

        Raises:
            UserError: when the rank is above the width.
        """
        if rank > width:
            raise UserError(
                f"codec.rank = {rank} is above the width {width} of the residual stream: use a "
                f"rank up to {width}; far below, say {max(1, width // 8)}, it compresses"
            )
        cpu = torch.device("cpu")
        with seeded(cpu, seed, "subspace"):
            columns = torch.randn(width, rank, dtype=torch.float64)
            self.table = deviation * torch.randn(vocabulary, width)
        q, r = torch.linalg.qr(columns)
        # A QR decomposition is unique up to signs, which libraries choose differently.
        self.basis = q * r.diagonal().sign()
        self._cast: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def embed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """E[tokens], the part of the stream that no one learns: (B, T) to (B, T, D)."""
        if self.table.device != tokens.device:
            self.table = self.table.to(tokens.device)
        return self.table[tokens].to(dtype)

    @torch.no_grad()
    def project_(self, weight: Tensor, dim: int = 0) -> None:
        """Project a parameter that writes the residual stream: W <- U U^T W, in place.

        To be called after every update, because optimizers that scale elements leave the subspace.

        Args:
            weight: dimension `dim` has size D.
            dim: 0 for the weight (D, ...) and bias (D,) of a linear layer that writes the stream;
                -1 for learned embeddings (..., D).
        """
        u = self._basis_for(weight)
        rows = weight.movedim(dim, -1)
        weight.copy_((rows @ u @ u.T).movedim(-1, dim))

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        """Coordinates (B, T, r) and tokens (B, T) of h (B, T, D).

        Without tokens the tensor is taken as it is. So travel gradients: of dL/dh only the part
        in the subspace reaches parameters, because all writes to the stream are projected.
        """
        x = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if tokens is None:
            return {name: x @ self._basis_for(x)}
        coordinates = (x - self.embed(tokens, x.dtype)) @ self._basis_for(x)
        return {name: coordinates, f"{name}.tokens": tokens}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        c, tokens = message[name], message.get(f"{name}.tokens")
        x = c @ self._basis_for(c).T
        if tokens is not None:
            x = x + self.embed(tokens, x.dtype)
        return x.to(dtype)

    def _basis_for(self, tensor: Tensor) -> Tensor:
        key = (tensor.device, tensor.dtype)
        if key not in self._cast:
            self._cast[key] = self.basis.to(*key)
        return self._cast[key]
