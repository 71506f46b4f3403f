"""Exponential families of block-local learning with probabilistic latents.

A factorised latent of U units has natural parameters a of shape (..., U, P), P numbers a unit:
the forward message alpha is EF(a), the feedback message beta_y is proportional to exp(T(z).b_y),
and messages multiply by adding natural parameters.

Source: the model of Kappel et al. 2023 (arXiv 2305.14974); the closed forms E1 to E7 are derived in
docs/rules/bll.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.errors import UserError

LatentKind = Literal["bernoulli", "gaussian", "gaussian-learned", "categorical"]
EPS = 1e-3  # smallest half precision / variance of the learned-variance Gaussian


class Family(ABC):
    """One exponential family; subclasses give A, its gradient and their own normalisation."""

    parameters: int = 1  # P, natural parameters a unit

    @abstractmethod
    def log_partition(self, a: Tensor) -> Tensor:
        """A(a): (..., U, P) to (..., U)."""

    @abstractmethod
    def mean(self, a: Tensor) -> Tensor:
        """mu(a), the gradient of A: expected sufficient statistics, (..., U, P)."""

    def feedback(self, raw: Tensor) -> Tensor:
        """Map an unconstrained (C, U, P) table to natural parameters of beta."""
        return raw

    def evidence(self, a: Tensor, b: Tensor) -> Tensor:
        """E5, log E_alpha[exp(T.b)] summed over units: a (B, U, P), b (C, U, P) to (B, C)."""
        joint = self.log_partition(a[:, None] + b[None])
        return (joint - self.log_partition(a)[:, None]).sum(-1)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """Log evidence of each label, up to a constant in the label: (B, C)."""
        return self.evidence(a, b)

    def shift(self, a: Tensor, b: Tensor) -> Tensor:
        """How far the posterior moves what the next block reads: (B, U, P) each to (B, U, P).

        For families that read their natural parameters this is b itself (E1).
        """
        return b.expand_as(a)

    def kl_to_prior(self, a: Tensor, b: Tensor) -> Tensor:
        """E3, KL(EF(a+b) || EF(a)) summed over units: (..., U, P) each to (...)."""
        posterior = a + b
        bregman = (b * self.mean(posterior)).sum(-1)
        return (bregman - self.log_partition(posterior) + self.log_partition(a)).sum(-1)


class Bernoulli(Family):
    """Binary units; a is the logit, A(a) = softplus(a)."""

    def log_partition(self, a: Tensor) -> Tensor:
        return F.softplus(a[..., 0])

    def mean(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)


class UnitGaussian(Family):
    """Gaussian units of variance one; a is the mean, A(a) = a^2 / 2."""

    def log_partition(self, a: Tensor) -> Tensor:
        return a[..., 0].square() / 2

    def mean(self, a: Tensor) -> Tensor:
        return a

    def evidence(self, a: Tensor, b: Tensor) -> Tensor:
        # A(a+b) - A(a) = a.b + b^2/2: one matrix product instead of (B, C, U) terms.
        return a[..., 0] @ b[..., 0].T + b[..., 0].square().sum(-1) / 2


class LearnedGaussian(Family):
    """Gaussian units with a variance of their own; a = (m/v, -1/(2v)).

    beta is a normalised Gaussian N(z; m_b, v_b), so the score is log N(m_b; m, v + v_b).
    """

    parameters = 2

    def log_partition(self, a: Tensor) -> Tensor:
        e1, e2 = a[..., 0], a[..., 1]
        return -e1.square() / (4 * e2) - 0.5 * torch.log(-2 * e2)

    def mean(self, a: Tensor) -> Tensor:
        m, v = self._moments(a)
        return torch.stack((m, m.square() + v), dim=-1)

    def feedback(self, raw: Tensor) -> Tensor:
        m, v = raw[..., 0], F.softplus(raw[..., 1]) + EPS
        return torch.stack((m / v, -0.5 / v), dim=-1)

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        (m, v), (m_b, v_b) = self._moments(a), self._moments(b)
        total = v[:, None] + v_b[None]
        error = (m[:, None] - m_b[None]).square() / total
        return -0.5 * (error + torch.log(total) + math.log(2 * math.pi)).sum(-1)

    def shift(self, a: Tensor, b: Tensor) -> Tensor:
        # The next block reads the mean; the posterior's is the precision-weighted one.
        (m, v), (m_r, v_r) = self._moments(a), self._moments(a + b)
        return torch.stack((m_r - m, v_r - v), dim=-1)

    @staticmethod
    def _moments(a: Tensor) -> tuple[Tensor, Tensor]:
        v = -0.5 / a[..., 1]
        return a[..., 0] * v, v


class Categorical(Family):
    """Groups of `states` exclusive states; a are logits, A(a) = logsumexp."""

    def __init__(self, states: int) -> None:
        self.parameters = states

    def log_partition(self, a: Tensor) -> Tensor:
        return torch.logsumexp(a, dim=-1)

    def mean(self, a: Tensor) -> Tensor:
        return torch.softmax(a, dim=-1)


def make_family(kind: LatentKind, states: int) -> Family:
    """The family called `kind`; `states` is the group size of the categorical one."""
    if kind == "categorical":
        if states < 2:
            raise UserError(f"rule.latent.states = {states} must be at least 2: a group needs two")
        return Categorical(states)
    return {"bernoulli": Bernoulli, "gaussian": UnitGaussian, "gaussian-learned": LearnedGaussian}[
        kind
    ]()


def label_loss(score: Tensor, bias: Tensor, y: Tensor, temperature: float) -> Tensor:
    """E6, -log softmax_y(c_y + temperature * score), summed over samples.

    Shapes (B, C), (C,), (B,) to ().
    """
    return F.cross_entropy(bias + temperature * score, y, reduction="sum")


def proper_bound(family: Family, a: Tensor, b: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """E7, an upper bound on -log E_alpha[q(y|z)] with q(y|z) = softmax_y(c_y + T(z).b_y).

    Shapes (B, U, P), (C, U, P), (C,), (B,) to (B,).
    """
    linear = (family.mean(a) * b[y]).sum((-1, -2)) + bias[y]
    return torch.logsumexp(bias + family.evidence(a, b), dim=-1) - linear
