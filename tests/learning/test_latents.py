"""E1 to E7 in closed form against enumeration and quadrature of the densities themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.distributions import Categorical, Normal

from learning.errors import UserError
from learning.objectives.latents import Family, label_loss, make_family, proper_bound

KINDS = ("bernoulli", "gaussian", "gaussian-learned", "categorical")
EXACT = ("bernoulli", "gaussian", "categorical")  # families whose score is E5 itself
UNITS, CLASSES, STATES = 2, 3, 3
GRID = torch.arange(-20, 20, 0.05, dtype=torch.float64)
quick = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)
every_kind = pytest.mark.parametrize("kind", KINDS)


def support(kind: str) -> tuple[Tensor, Tensor]:
    """Sufficient statistics T (S, P) of every value of one unit and log weights (S,).

    For the Gaussians the values are a grid and the weights its spacing: trapezoidal quadrature.
    """
    if kind == "bernoulli":
        return torch.tensor([[0.0], [1.0]]).double(), torch.zeros(2).double()
    if kind == "categorical":
        return torch.eye(STATES).double(), torch.zeros(STATES).double()
    weights = torch.full_like(GRID, math.log(0.05))
    columns = (GRID,) if kind == "gaussian" else (GRID, GRID.square())
    return torch.stack(columns, dim=-1), weights


def log_density(kind: str, a: Tensor) -> Tensor:
    """Log density of EF(a) at every value of the support, by torch's own: (..., P) to (..., S)."""
    if kind == "bernoulli":
        return torch.cat((F.logsigmoid(-a), F.logsigmoid(a)), dim=-1)
    if kind == "categorical":
        return Categorical(logits=a).logits
    if kind == "gaussian":
        return Normal(a, 1.0).log_prob(GRID)
    precision = -2 * a[..., 1:]
    return Normal(a[..., :1] / precision, precision**-0.5).log_prob(GRID)


def parameters(kind: str, raw: np.ndarray) -> Tensor:
    """Valid natural parameters from numbers in [-3, 3]."""
    raw_tensor = torch.from_numpy(raw)
    if kind != "gaussian-learned":
        return raw_tensor
    m, v = raw_tensor[..., 0], F.softplus(raw_tensor[..., 1]) + 0.2
    return torch.stack((m / v, -0.5 / v), dim=-1)


def drawn(kind: str, seed: int, *shape: int) -> Tensor:
    """Random natural parameters: (*shape, P)."""
    p = make_family(kind, STATES).parameters
    return parameters(kind, np.random.default_rng(seed).uniform(-3, 3, (*shape, p)))


@st.composite
def pairs(draw):
    """Family, kind, a and b: (UNITS, P) each."""
    kind = draw(st.sampled_from(KINDS))
    family = make_family(kind, STATES)
    raw = arrays(np.float64, (UNITS, family.parameters), elements=st.floats(-3, 3, width=16))
    return family, kind, parameters(kind, draw(raw)), parameters(kind, draw(raw))


@quick
@given(pairs())
def test_mean_is_the_gradient_of_the_log_partition(drawing):
    family, kind, a, _ = drawing
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(a).sum(), a)
    torch.testing.assert_close(gradient, family.mean(a), rtol=1e-12, atol=1e-12)
    t, weights = support(kind)
    moments = (log_density(kind, a) + weights).exp() @ t
    torch.testing.assert_close(family.mean(a).detach(), moments.detach(), rtol=1e-8, atol=1e-8)


@quick
@given(pairs())
def test_e1_posterior_adds_natural_parameters(drawing):
    family, kind, a, b = drawing
    t, weights = support(kind)
    # beta need not be normalisable: exp(T.b) for the unit Gaussian, densities for the others.
    beta = b @ t.T if kind == "gaussian" else log_density(kind, b)
    product = torch.softmax(log_density(kind, a) + beta + weights, dim=-1)
    torch.testing.assert_close(product @ t, family.mean(a + b), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        product, (log_density(kind, a + b) + weights).exp(), rtol=1e-8, atol=1e-8
    )


@quick
@given(pairs())
def test_e3_divergence_by_enumeration(drawing):
    family, kind, a, b = drawing
    weights = support(kind)[1]
    prior, posterior = log_density(kind, a), log_density(kind, a + b)
    expected = ((posterior + weights).exp() * (posterior - prior)).sum()
    kl = family.kl_to_prior(a, b)
    torch.testing.assert_close(kl, expected, rtol=1e-8, atol=1e-8)
    assert kl >= -1e-12
    assert family.kl_to_prior(a, torch.zeros_like(a)).abs() < 1e-12


@quick
@given(pairs())
def test_e4_gradient_of_the_divergence_is_the_moment_error(drawing):
    family, _, a, b = drawing
    rho = a + b
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(family.kl_to_prior(a, rho - a), a)
    expected = (family.mean(a) - family.mean(rho)).detach()
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@quick
@given(pairs())
def test_e5_evidence_by_enumeration_and_its_identity(drawing):
    family, kind, a, b = drawing
    t, weights = support(kind)
    alpha = log_density(kind, a) + weights
    expected = torch.logsumexp(alpha + b @ t.T, dim=-1).sum()
    evidence = family.evidence(a[None], b[None])
    assert evidence.shape == (1, 1)
    torch.testing.assert_close(evidence[0, 0], expected, rtol=1e-8, atol=1e-8)
    expected_beta = (family.mean(a + b) * b).sum()
    left = family.kl_to_prior(a, b) - expected_beta
    torch.testing.assert_close(left, -evidence[0, 0], rtol=1e-10, atol=1e-10)
    if kind != "gaussian-learned":
        assert torch.equal(family.score(a[None], b[None]), evidence)


@every_kind
def test_e5_evidence_by_monte_carlo(kind):
    samples = 40_000
    a, b = drawn(kind, 1, 2, UNITS), 0.3 * drawn(kind, 2, CLASSES, UNITS)
    t, weights = support(kind)
    generator = torch.Generator().manual_seed(0)
    alpha = (log_density(kind, a) + weights).exp().flatten(0, 1)
    z = torch.multinomial(alpha, samples, replacement=True, generator=generator)
    statistics = t[z].unflatten(0, (2, UNITS))  # (B, U, samples, P)
    likelihood = torch.einsum("busp,cup->bcs", statistics, b).exp()
    error = likelihood.std(-1) / math.sqrt(samples)
    exact = make_family(kind, STATES).evidence(a, b).exp()
    assert ((likelihood.mean(-1) - exact).abs() < 5 * error).all()


@quick
@given(seed=seeds)
def test_learned_gaussian_score_is_the_normalised_evidence(seed):
    family = make_family("gaussian-learned", STATES)
    a, b = drawn("gaussian-learned", seed, 2, UNITS), drawn("gaussian-learned", seed + 1, 3, UNITS)
    (m, v), (m_b, v_b) = ((p[..., 0] / (-2 * p[..., 1]), -0.5 / p[..., 1]) for p in (a, b))
    marginal = Normal(m[:, None], (v[:, None] + v_b).sqrt())
    expected = marginal.log_prob(m_b.expand(2, 3, UNITS)).sum(-1)
    torch.testing.assert_close(family.score(a, b), expected, rtol=1e-10, atol=1e-10)
    # log N(z; m_b, v_b) = T.b - A(b) - log(2 pi) / 2, so the two differ by that normaliser.
    normaliser = (family.log_partition(b) + math.log(2 * math.pi) / 2).sum(-1)
    torch.testing.assert_close(
        family.evidence(a, b) - normaliser, family.score(a, b), rtol=1e-9, atol=1e-9
    )


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 0.35])
@quick
@given(seed=seeds)
def test_e6_gradients_are_the_closed_forms(kind, temperature, seed):
    family = make_family(kind, STATES)
    a, b = drawn(kind, seed, 4, UNITS), 0.5 * drawn(kind, seed + 1, CLASSES, UNITS)
    c = torch.linspace(-1, 1, CLASSES).double()
    y = torch.tensor([0, 2, 1, 2])
    for tensor in (a, b, c):
        tensor.requires_grad_()
    score = family.score(a, b)
    loss = label_loss(score, c, y, temperature)
    got = torch.autograd.grad(loss, (a, b, c))
    p = torch.softmax(c + temperature * score, dim=-1).detach()
    error = p - F.one_hot(y, CLASSES)
    mu = family.mean(a[:, None] + b).detach()  # (B, C, U, P)
    # The normaliser of beta moves with b for the family that has one.
    own = family.mean(b).detach() if kind == "gaussian-learned" else torch.zeros(b.shape).double()
    to_a = temperature * torch.einsum("bc,bcup->bup", error, mu)
    to_b = temperature * torch.einsum("bc,bcup->cup", error, mu - own)
    for gradient, expected in zip(got, (to_a, to_b, error.sum(0)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-7)
    picked = -torch.log(p[torch.arange(4), y]).sum()
    torch.testing.assert_close(loss.detach(), picked, rtol=1e-10, atol=1e-10)


@every_kind
@quick
@given(seed=seeds)
def test_e7_bounds_the_expected_label_probability(kind, seed):
    family = make_family(kind, STATES)
    a, b = drawn(kind, seed, 1, UNITS), 0.5 * drawn(kind, seed + 1, CLASSES, UNITS)
    c, y = torch.tensor([0.5, -0.5, 0.0]).double(), torch.tensor([seed % CLASSES])
    t, weights = support(kind)
    if kind.startswith("gaussian"):  # every fourth point is enough, and joint values are many
        t, weights = t[::4], weights[::4] + math.log(4)
        alpha = log_density(kind, a[0])[:, ::4] + weights
    else:
        alpha = log_density(kind, a[0]) + weights
    joint = alpha[0][:, None] + alpha[1][None]  # two units
    tb = torch.einsum("sp,cup->ucs", t, b)
    q = torch.log_softmax(c[:, None, None] + tb[0][:, :, None] + tb[1][:, None], dim=0)
    exact = -torch.logsumexp((joint + q[y[0]]).flatten(), dim=0)
    bound = proper_bound(family, a, b, c, y)
    assert bound.shape == (1,)
    assert bound[0] >= exact - 1e-9
    mean_score = ((alpha.exp() @ t) * b[y[0]]).sum()
    evidences = torch.stack([torch.logsumexp(alpha + tb[:, i], -1).sum() for i in range(CLASSES)])
    formula = torch.logsumexp(c + evidences, 0) - mean_score - c[y[0]]
    torch.testing.assert_close(bound[0], formula, rtol=1e-6, atol=1e-6)
    if kind in EXACT:
        assert bound[0] >= label_loss(family.score(a, b), c, y, 1.0) - 1e-9


@quick
@given(seed=seeds)
def test_e2_free_energy_bounds_the_likelihood_of_a_bernoulli_chain(seed):
    rng = np.random.default_rng(seed)
    w, v = (torch.from_numpy(rng.normal(0, 1.5, (n, UNITS))) for n in (UNITS, CLASSES))
    a1, b1, r2 = (torch.from_numpy(rng.normal(0, 1.5, (UNITS, 1))) for _ in range(3))
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=UNITS))).double()

    def density(logits: Tensor) -> Tensor:  # (..., U) to every joint state
        return torch.where(states == 1, logits.sigmoid(), (-logits).sigmoid()).prod(-1)

    y = seed % CLASSES
    label = torch.log_softmax(states @ v.T, dim=-1)[:, y]
    second = torch.stack([density(w @ z) for z in states])  # p(z2 | z1)
    exact = -torch.log(density(a1[:, 0]) @ second @ label.exp())
    family: Family = make_family("bernoulli", STATES)
    rho1, rho2 = density((a1 + b1)[:, 0]), density(r2[:, 0])
    priors = [(w @ z)[:, None] for z in states]
    inner = torch.stack([family.kl_to_prior(prior, r2 - prior) for prior in priors])
    free_energy = family.kl_to_prior(a1, b1) + rho1 @ inner - rho2 @ label
    assert free_energy >= exact - 1e-12


def free_energy_of_one_latent(kind: str, a: Tensor, b: Tensor, log_p: Tensor) -> Tensor:
    """F of E2 for one latent of one unit with p(y|z) given at every value of its support (S,)."""
    rho = (log_density(kind, a + b)[0] + support(kind)[1]).exp()
    return make_family(kind, STATES).kl_to_prior(a, b) - rho @ log_p


@every_kind
@quick
@given(seed=seeds)
def test_e2_free_energy_bounds_the_likelihood_of_one_latent(kind, seed):
    """Its distance from -log p(y|x) is KL(rho || p(z|x, y)), by enumeration and quadrature."""
    a, b, v = (drawn(kind, seed + i, n) for i, n in enumerate((1, 1, CLASSES)))
    t, weights = support(kind)
    log_p = torch.log_softmax(v @ t.T, dim=0)[seed % CLASSES]
    joint = log_density(kind, a)[0] + weights + log_p
    exact = -torch.logsumexp(joint, dim=0)
    log_rho = log_density(kind, a + b)[0] + weights
    distance = (log_rho.exp() * (log_rho - joint - exact)).sum()
    free_energy = free_energy_of_one_latent(kind, a, b, log_p)
    assert free_energy >= exact - 1e-9
    torch.testing.assert_close(free_energy - exact, distance, rtol=1e-7, atol=1e-7)


@every_kind
@quick
@given(seed=seeds)
def test_e2_is_tight_when_beta_is_proportional_to_the_likelihood(kind, seed):
    a, b = drawn(kind, seed, 1), drawn(kind, seed + 1, 1)
    t, weights = support(kind)
    log_p = t @ b[0]
    log_p = log_p - log_p.max()  # at most 1 on the support
    exact = -torch.logsumexp(log_density(kind, a)[0] + weights + log_p, dim=0)
    free_energy = free_energy_of_one_latent(kind, a, b, log_p)
    torch.testing.assert_close(free_energy, exact, rtol=1e-8, atol=1e-8)
    elsewhere = free_energy_of_one_latent(kind, a, 1.5 * b, log_p)
    assert elsewhere > exact or b.abs().max() < 1e-3


@every_kind
def test_shift_moves_what_the_next_block_reads(kind):
    family, a, b = make_family(kind, STATES), drawn(kind, 3, 2, UNITS), drawn(kind, 4, 2, UNITS)
    shift = family.shift(a, b)
    if kind == "gaussian-learned":  # it reads means: the posterior's is precision-weighted
        va, vb = -0.5 / a[..., 1], -0.5 / b[..., 1]
        ma, mb = a[..., 0] * va, b[..., 0] * vb
        torch.testing.assert_close(ma + shift[..., 0], (vb * ma + va * mb) / (va + vb))
    else:
        assert torch.equal(shift, b)


def test_a_group_needs_two_states():
    with pytest.raises(UserError, match="at least 2"):
        make_family("categorical", 1)
