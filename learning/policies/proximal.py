"""Proximal backpropagation: implicit steps of linear layers (Frerix et al. 2018, arXiv 1706.04638).

A gradient step on the outputs of a linear layer, z+ = z - g, and then the weights that reach it,
held back by their distance from the old ones:

    theta+ = argmin 1/2 mean |theta a - z+|^2 + 1/(2 tau) |theta - theta0|^2

has the closed form  theta0 - theta+ = G (A + I/tau)^-1  with G the mean gradient of the weights and
A the mean of a a^T over the layer's inputs a, with 1 appended where there is a bias. (The authors'
code solves for it; this form is derived.) The optimizer gets theta0 - theta+ in place of G.

Means are over rows: inputs (B, T, D) count as B T samples. A sample's loss is the mean over its
tokens, so G too is the mean over rows of the gradient of a row's loss, and tau means the same for
any length of sequence.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProximalPreconditioner:
    """Turns the gradients of a module's linear layers into proximal steps.

    For tau -> 0 the step is tau G: parallel to the gradient, and shorter by tau. For tau -> inf it
    is G A^-1: the size of the inputs no longer matters (a one-sided K-FAC). Layers whose weight
    other modules share, and parameters of other kinds, keep their gradient.

    Attributes:
        tau: step size of the proximal problem; multiplies the learning rate while it is small.
        layers: the linear layers, in the module's order.
    """

    def __init__(self, module: nn.Module, tau: float) -> None:
        self.tau = tau
        uses: Counter[Tensor] = Counter(
            p for m in module.modules() for p in m._parameters.values() if p is not None
        )
        self.layers = [
            m
            for m in module.modules()
            if isinstance(m, nn.Linear)
            and type(m).forward is nn.Linear.forward  # a subclass may read its input differently
            and m.weight.requires_grad
            and uses[m.weight] == 1
            and (m.bias is None or uses[m.bias] == 1)
        ]

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Tensor | None]]:
        """Record what the layers read in a forward pass.

        Yields:
            One second moment a layer, float32 or float64, (D+1, D+1): the sum of [a 1]^T [a 1] over
            the rows a of all inputs (..., D); its last entry counts the rows. None for a layer that
            did not run in training mode. Sums of shards are sums of these.
        """
        moments: list[Tensor | None] = [None] * len(self.layers)

        def hook_of(i: int):
            def hook(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
                if layer.training:
                    moment = _second_moment(args[0] if args else named["input"])
                    held = moments[i]
                    moments[i] = moment if held is None else held + moment

            return hook

        # Only for this pass: evaluations stay cheap, and the user's modules stay clean.
        handles = [
            layer.register_forward_pre_hook(hook_of(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        try:
            yield moments
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def apply(self, gradients: dict[Tensor, Tensor], moments: Sequence[Tensor | None]) -> None:
        """Replace the mean gradients of the linear layers by theta0 - theta+, in place.

        Args:
            gradients: by parameter, those of other layers among them.
            moments: sums over the global batch, as `recording` yields them.
        """
        for layer, moment in zip(self.layers, moments, strict=True):
            gradient = gradients.get(layer.weight)
            if gradient is None or moment is None:
                continue
            bias = None if layer.bias is None else gradients.get(layer.bias)
            mean, eps = moment.double() / moment[-1, -1].double(), torch.finfo(moment.dtype).eps
            if bias is None:
                gradients[layer.weight] = self._step(gradient, mean[:-1, :-1], eps)
            else:
                both = self._step(torch.cat([gradient, bias[:, None]], 1), mean, eps)
                gradients[layer.weight] = both[:, :-1].contiguous()
                gradients[layer.bias] = both[:, -1].contiguous()

    def _step(self, gradient: Tensor, mean: Tensor, eps: float) -> Tensor:
        """G (A + I/tau)^-1 for G (out, n) and A (n, n), solved in float64.

        Where 1/tau is below what rounding left of the zero eigenvalues of A, that takes its place:
        the step would be made of rounding errors otherwise.
        """
        damping = (eps * mean.trace()).clamp(min=1 / self.tau)
        ridge = damping * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        factor, failed = torch.linalg.cholesky_ex(mean + ridge)
        g = gradient.double()
        if not failed:
            return torch.cholesky_solve(g.T, factor).T.to(gradient.dtype)
        # Sums over many rows can leave A more indefinite than that. What was meant has no
        # eigenvalue below 0.
        values, vectors = torch.linalg.eigh(mean)
        return ((g @ vectors) / (values.clamp(min=0) + damping) @ vectors.T).to(gradient.dtype)


@torch.no_grad()
def _second_moment(x: Tensor) -> Tensor:
    """Inputs (..., D) to the sum of [a 1]^T [a 1] over their rows, (D+1, D+1)."""
    x = x.detach().reshape(-1, x.shape[-1])
    a = F.pad(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 1), value=1.0)
    with torch.autocast(x.device.type, enabled=False):
        return a.T @ a
