"""Messages: named tensors that cross a block boundary, detached and contiguous."""

from __future__ import annotations

from torch import Tensor

Message = dict[str, Tensor]
"""Named tensors. Forward: `x` (b, ...) and labels `y` (b,). Gradient: `gradient` (b, ...), of the
per-sample sum of a loss. Feedback: natural parameters `b` (C, U, P) and label bias `c` (C,); its
chain carries `raw` (C, U, P). Readout, from a block to its feedback module: `a` (b, U, P), `y`."""


def outgoing(tensor: Tensor) -> Tensor:
    """Detach for sending, in one layout, whatever transport hands it over.

    The detour over one dimension also fixes the strides of dimensions of size one, which torch
    counts as contiguous with any stride and NumPy writes anew.
    """
    return tensor.detach().contiguous().view(-1).view(tensor.shape)
