"""The evidence objective: its Gaussian special case, its readout and posterior bootstrapping."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.credit import LOCAL
from learning.errors import UserError
from learning.learners.block import BlockLearner
from learning.objectives.base import Bootstrap, Evidence, Told
from learning.objectives.latents import LatentKind
from learning.objectives.readout import LatentSettings, Readout
from learning.units import Unit
from tests.learning.helpers import learner_settings

RAW = LatentSettings(normalization="none", temperature=0.7)
Y = torch.tensor([0, 2, 1, 2, 0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_loss(h: Tensor, b: Tensor, c: Tensor, temperature: float) -> Tensor:
    """The classifier that E6 is for unit Gaussians: rows b, bias c + ||b||^2 / 2."""
    scores = F.linear(h, temperature * b, c + temperature * b.square().sum(-1) / 2)
    return F.cross_entropy(scores, Y, reduction="sum")


def test_unit_gaussian_evidence_is_a_linear_classifier():
    h, b, c = random(5, 4), random(3, 4, seed=1), random(3, seed=2)
    tensors = [t.requires_grad_() for t in (h, b, c)]
    expected = linear_loss(h, b, c, 0.7)
    assessment = Evidence(RAW, (4,)).double()(h, Told(Y, {"b": b[..., None], "c": c}))
    torch.testing.assert_close(assessment.loss, expected, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(assessment.loss, tensors)
    want = torch.autograd.grad(expected, tensors)
    for gradient, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)
    picked = torch.log_softmax(assessment.scores, -1)[torch.arange(5), Y]
    torch.testing.assert_close(-picked.sum(), expected, rtol=1e-12, atol=1e-12)


def test_the_readout_message_is_constant_and_is_what_was_scored():
    h = random(5, 4).requires_grad_()
    objective = Evidence(LatentSettings(kind="gaussian-learned"), (4,)).double()
    b = torch.stack((random(3, 4), -torch.ones(3, 4, dtype=torch.float64)), dim=-1)
    readout = objective(h, Told(Y, {"b": b, "c": random(3)})).readout
    assert readout is not None and torch.equal(readout["y"], Y)
    assert not readout["a"].requires_grad
    assert torch.equal(readout["a"], objective.readout(h).detach())


@pytest.mark.parametrize(
    ("kind", "vector", "image"),
    [
        ("bernoulli", (6, 1), (12, 1)),
        ("gaussian", (6, 1), (12, 1)),
        ("gaussian-learned", (6, 2), (12, 2)),
        ("categorical", (2, 3), (4, 3)),
    ],
)
def test_readout_shapes(kind: LatentKind, vector, image):
    settings = LatentSettings(kind=kind, states=3, grid=2)
    for shape, (units, parameters) in (((6,), vector), ((3, 4, 5), image)):
        readout = Readout(settings, shape)
        a = readout(torch.randn(5, *shape))
        assert a.shape == (5, units, parameters) and a.dtype == torch.float32
        assert readout.units == units
        assert readout.temperature == pytest.approx(1 / math.sqrt(units))


def test_the_grid_is_never_finer_than_the_image():
    readout = Readout(LatentSettings(grid=2), (3, 1, 4))
    assert readout(torch.randn(5, 3, 1, 4)).shape == (5, 6, 1)


def test_learned_gaussian_reads_the_mean_and_learns_the_precision():
    readout = Readout(LatentSettings(kind="gaussian-learned", normalization="none"), (2,)).double()
    h = random(5, 2)
    a = readout(h)
    torch.testing.assert_close(-a[..., 0] / (2 * a[..., 1]), h)
    a[..., 1].sum().backward()
    assert readout.scale.grad is not None and readout.scale.grad.abs().min() > 1e-3
    assert readout.offset.grad is not None and readout.offset.grad.abs().min() > 1e-3


def test_batch_normalised_readout_has_unit_variance_and_no_weights():
    readout = Readout(LatentSettings(), (3,)).double()
    a = readout(5 + 4 * random(64, 3))
    torch.testing.assert_close(a.mean(0), torch.zeros_like(a[0]), rtol=0, atol=1e-12)
    assert (a.var(0, unbiased=False) - 1).abs().max() < 1e-4
    assert not list(readout.parameters())


def test_states_must_divide_the_features():
    with pytest.raises(UserError, match=r"states = 4 does not divide the 6 features"):
        Readout(LatentSettings(kind="categorical", states=4), (6,))


def test_activations_of_four_dimensions_are_refused():
    with pytest.raises(UserError, match=r"\(2, 3, 7, 5\): cut the network at another unit"):
        Readout(LatentSettings(), (2, 3, 7, 5))


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "categorical"])
@pytest.mark.parametrize("shape", [(6,), (3, 2, 2)])
def test_posterior_adds_the_feedback_to_the_activation(kind: LatentKind, shape):
    settings = LatentSettings(kind=kind, states=3, grid=2, normalization="none")
    h, features = random(5, *shape), math.prod(shape)
    b = random(5, features, seed=1)
    parameters = 3 if kind == "categorical" else 1
    moved = Readout(settings, shape).posterior(h, b.view(5, -1, parameters))
    torch.testing.assert_close(moved, h + b.view_as(h), rtol=1e-14, atol=1e-14)


def test_posterior_of_a_pooled_readout_is_reached_after_pooling():
    readout = Readout(LatentSettings(grid=2, normalization="none"), (3, 4, 6)).double()
    h, b = random(5, 3, 4, 6), random(5, 12, 1, seed=1)
    moved = readout.posterior(h, b)
    torch.testing.assert_close(readout(moved), readout(h) + b, rtol=1e-12, atol=1e-12)
    first_cell = (moved - h)[:, :, :2, :3]  # the shift is even over the cells of one readout
    torch.testing.assert_close(first_cell, first_cell[:, :, :1, :1].expand_as(first_cell))


def test_posterior_with_batch_norm_shifts_by_b_in_normalised_units():
    readout = Readout(LatentSettings(), (4,)).double()
    before = {n: t.clone() for n, t in readout.state_dict().items()}
    h, b = 3 + 2 * random(16, 4), random(16, 4, 1, seed=1)
    std = (h.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(readout.posterior(h, b), h + b[..., 0] * std)
    for name, tensor in readout.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_posterior_of_a_learned_gaussian_is_the_precision_weighted_mean():
    settings = LatentSettings(kind="gaussian-learned", normalization="none")
    readout = Readout(settings, (4,)).double()
    h, m_b, v_b = random(5, 4), random(5, 4, seed=1), random(5, 4, seed=2).exp()
    v = 0.5 / (math.log(2) + 1e-3)  # softplus(0) + eps is half the precision
    moved = readout.posterior(h, torch.stack((m_b / v_b, -0.5 / v_b), dim=-1))
    torch.testing.assert_close(moved, (v_b * h + v * m_b) / (v + v_b))


def test_without_a_share_nothing_is_mixed():
    assert not Evidence(RAW, (4,)).mixes(0)
    assert not Evidence(RAW, (4,), Bootstrap(0.0, 10)).mixes(0)
    mixing = Evidence(RAW, (4,), Bootstrap(1.0, 10))
    assert [mixing.mixes(step) for step in (0, 9, 10, 11)] == [True, True, False, False]


def test_a_block_sends_on_its_own_output_once_the_share_is_zero():
    h, feedback = random(5, 4), {"b": random(3, 4, 1, seed=1), "c": random(3)}
    objective = Evidence(RAW, (4,), Bootstrap(1.0, 10))
    identity = [Unit("same", nn.Identity())]
    learner = BlockLearner(1, 2, identity, objective, LOCAL, learner_settings(batch=5))
    for step, expected in ((0, h + feedback["b"][Y][..., 0]), (10, h)):
        (on,) = learner.forward(step, 0, {"x": h, "y": Y}, feedback)
        assert torch.equal(on.message["x"], expected)


def test_full_share_sends_on_the_posterior_of_the_right_label():
    h, feedback = random(5, 4), {"b": random(3, 4, 1, seed=1), "c": random(3)}
    on = Evidence(RAW, (4,), Bootstrap(1.0, 10)).send_on(h, Y, feedback, 0)
    torch.testing.assert_close(on, h + feedback["b"][Y][..., 0])


def test_the_share_falls_linearly_to_zero():
    bootstrap = Bootstrap(0.8, 4)
    assert [bootstrap.at(step) for step in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])


@pytest.mark.parametrize(("step", "share"), [(0, 0.6), (5, 0.3)])
def test_the_share_of_samples_is_met_and_samples_move_whole(step, share):
    n = 4000
    h, y = random(n, 2, 2, 2), torch.arange(n) % 3
    b = random(3, 8, 1, seed=1)
    objective = Evidence(RAW, (2, 2, 2), Bootstrap(0.6, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        on = objective.send_on(h, y, {"b": b, "c": random(3)}, step)
    changed = (on != h).flatten(1)
    assert torch.equal(changed.all(1), changed.any(1))
    torch.testing.assert_close(on[changed.all(1)], (h + b[y].view_as(h))[changed.all(1)])
    # Five standard deviations of a share of n samples.
    assert abs(changed.all(1).double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
