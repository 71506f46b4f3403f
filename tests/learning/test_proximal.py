"""Proximal backpropagation: the closed form, its limits, shards, and what it leaves alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from learning.policies.proximal import ProximalPreconditioner
from learning.policies.update import Updater
from learning.settings import ConstantSchedule, SGDSettings
from tests.learning.helpers import assert_same_bits, mlp

BATCH = 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def steps_of(
    module: nn.Module, x: Tensor, tau: float, loss=lambda h: h.square().sum()
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean gradients of all parameters, and what the preconditioner makes of them."""
    proximal = ProximalPreconditioner(module, tau)
    with proximal.recording() as moments:
        h = module(x)
    parameters = list(module.parameters())
    gradients = [g / len(x) for g in torch.autograd.grad(loss(h), parameters)]
    named: dict[Tensor, Tensor] = dict(zip(parameters, gradients, strict=True))
    proximal.apply(named, moments)
    return gradients, [named[p] for p in parameters]


def test_by_hand() -> None:
    """Two samples, no bias: A = diag(2, 1/2), and with tau = 1 (A + I)^-1 = diag(1/3, 2/3)."""
    layer = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(layer.weight)
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # The loss |h|^2 / 2 of h = x has the gradient h = a, so that G = A.
    (gradient,), (step,) = steps_of(layer, x, 1.0, lambda h: h.square().sum() / 2)
    assert torch.equal(gradient, torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)))
    expected = torch.diag(torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(step, expected, rtol=1e-14, atol=0)


def test_by_hand_with_bias() -> None:
    """One input 1 and a bias: A is all ones, and (A + I)^-1 = [[2, -1], [-1, 2]] / 3."""
    layer = nn.Linear(1, 1).double()
    x = torch.ones(3, 1, dtype=torch.float64)
    gradients, steps = steps_of(layer, x, 1.0, lambda h: 6 * h.sum())
    assert [g.item() for g in gradients] == [6.0, 6.0]
    assert [s.item() for s in steps] == pytest.approx([2.0, 2.0], rel=1e-14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tau", [0.05, 1.0, 30.0])
def test_solves_the_proximal_problem(bias: bool, tau: float) -> None:
    layer = nn.Linear(4, 3, bias=bias).double()
    x = draw(BATCH, 4)
    z = layer(x).detach().requires_grad_()
    (g,) = torch.autograd.grad((z.sin() * draw(BATCH, 3, seed=1)).sum(), z)
    a = torch.cat([x, torch.ones(BATCH, 1, dtype=x.dtype)], 1) if bias else x
    theta = torch.cat([layer.weight, layer.bias[:, None]], 1) if bias else layer.weight
    # 1/2 mean |theta a - z+|^2 + 1/(2 tau) |theta - theta0|^2 as one least-squares problem.
    rows = torch.cat([a / math.sqrt(BATCH), torch.eye(a.shape[1]).double() / math.sqrt(tau)])
    right = torch.cat([(z - g) / math.sqrt(BATCH), theta.T / math.sqrt(tau)])
    best = torch.linalg.lstsq(rows, right.detach()).solution.T
    _, steps = steps_of(layer, x, tau, lambda h: (h.sin() * draw(BATCH, 3, seed=1)).sum())
    step = torch.cat([steps[0], steps[1][:, None]], 1) if bias else steps[0]
    torch.testing.assert_close(theta.detach() - step, best, rtol=1e-11, atol=1e-12)


def test_small_tau_is_a_gradient_step() -> None:
    module, x = mlp(0).double(), draw(BATCH, 4)
    for tau in (1e-3, 1e-6):
        for gradient, step in zip(*steps_of(module, x, tau), strict=True):
            cosine = torch.cosine_similarity(gradient.flatten(), step.flatten(), dim=0)
            assert 1 - cosine.item() < 10 * tau**2 + 1e-14
            torch.testing.assert_close(step, tau * gradient, rtol=0, atol=100 * tau**2)


def test_large_tau_makes_the_scale_of_the_inputs_irrelevant() -> None:
    layer, x = nn.Linear(3, 2, bias=False).double(), draw(BATCH, 3)
    moved = []
    for scale in (1.0, 100.0):
        _, (step,) = steps_of(layer, scale * x, 1e9, lambda h: (h * draw(BATCH, 2, seed=2)).sum())
        moved.append(scale * x @ step.T)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-9)


def test_tokens_count_as_samples_of_their_own() -> None:
    """A sample's loss is the mean over its tokens: (B, T, D) equals (B T, D)."""
    layer, x, r = nn.Linear(3, 2).double(), draw(4, 5, 3), draw(4, 5, 2, seed=1)
    _, tokens = steps_of(layer, x, 0.7, lambda h: (h.sin() * r).sum() / 5)
    _, flat = steps_of(layer, x.flatten(0, 1), 0.7, lambda h: (h.sin() * r.flatten(0, 1)).sum())
    for a, b in zip(tokens, flat, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def updater_of(module: nn.Module, tau: float = 0.5, shards: int = 1) -> Updater:
    return Updater(
        module.named_parameters(),
        SGDSettings(lr=1.0, momentum=0.0),
        ConstantSchedule(),
        index=1,
        steps=10,
        batch=BATCH,
        shards=shards,
        proximal=ProximalPreconditioner(module, tau),
    )


def shard_work(updater: Updater, module: nn.Module, x: Tensor):
    with updater.recording() as moments:
        h = module(x)
    return torch.autograd.grad(h.square().sum(), list(module.parameters())), moments


def trained(shards: int, *, elsewhere: bool = False) -> dict[str, Tensor]:
    """One update from `shards` shards, computed here or by a copy of the block."""
    module = mlp(0).double()
    updater = updater_of(module, shards=shards)
    results = []
    for x in draw(BATCH, 4).chunk(shards):
        worker = copy.deepcopy(module) if elsewhere else module
        helper = updater_of(worker) if elsewhere else updater
        results.append(shard_work(helper, worker, x))
    for i, (gradients, moments) in enumerate(results):  # after all forwards, as in a pipeline
        updater.add(gradients)
        updater.end_shard(i, moments)
    updater.step(0)
    return module.state_dict()


def test_shards_add_up() -> None:
    whole = trained(1)
    for shards in (2, 4):
        here = trained(shards)
        assert_same_bits(here, trained(shards, elsewhere=True))
        for name, tensor in here.items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-12, atol=1e-13)


def test_other_parameters_keep_their_gradient() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight
            self.frozen = nn.Linear(4, 4)
            self.frozen.weight.requires_grad_(False)
            self.idle = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.other(self.one(self.norm(self.linear(x))))
            return self.frozen(h) + 0 * self.idle.weight.sum() * h

    module = Tied().double()
    proximal = ProximalPreconditioner(module, 1.0)
    assert proximal.layers == [module.linear, module.idle]
    with proximal.recording() as moments:
        h = module(draw(BATCH, 4))
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(h.sin().sum(), list(named.values()), allow_unused=True)
    by_parameter: dict[Tensor, Tensor] = {
        p: g for p, g in zip(named.values(), gradients, strict=True) if g is not None
    }
    before = {n: by_parameter[p] for n, p in named.items() if p in by_parameter}
    proximal.apply(by_parameter, moments)
    changed = {n for n, g in before.items() if by_parameter[named[n]] is not g}
    assert changed == {"linear.weight", "linear.bias"}


def test_a_frozen_bias_is_not_solved_for() -> None:
    layer = nn.Linear(3, 2).double()
    layer.bias.requires_grad_(False)
    plain = nn.Linear(3, 2, bias=False).double()
    plain.load_state_dict({"weight": layer.weight})
    x = draw(BATCH, 3)
    proximal = ProximalPreconditioner(layer, 1.0)
    with proximal.recording() as moments:
        h = layer(x)
    # A linear loss, whose gradient the missing bias does not change.
    (gradient,) = torch.autograd.grad(h.sum(), [layer.weight])
    named: dict[Tensor, Tensor] = {layer.weight: gradient / BATCH}
    proximal.apply(named, moments)
    _, (expected,) = steps_of(plain, x, 1.0, lambda h: h.sum())
    assert torch.equal(named[layer.weight], expected)


def test_records_only_inside_and_only_training() -> None:
    module, x = mlp(0).double(), draw(BATCH, 4)
    proximal = ProximalPreconditioner(module, 1.0)
    module(x)
    with proximal.recording() as moments:
        assert moments == [None] * 4
        module.eval()(x)
        assert moments == [None] * 4
        module.train()(x)
        once = [m.clone() for m in moments if m is not None]
        module(x)  # a layer that runs twice reads twice as many rows
    assert all(m is not None and m[-1, -1] == 2 * BATCH for m in moments)
    assert all(torch.equal(m, 2 * o) for m, o in zip(moments, once, strict=True) if m is not None)
    assert all(m is not None and not m.requires_grad for m in moments)
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_hooks_go_when_the_forward_pass_fails() -> None:
    module = mlp(0)
    proximal = ProximalPreconditioner(module, 1.0)
    with pytest.raises(RuntimeError), proximal.recording():
        module(torch.zeros(2, 5))
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_autocast_moments_are_float32() -> None:
    module, x = mlp(0), draw(BATCH, 4).float()
    proximal = ProximalPreconditioner(module, 1.0)
    with torch.autocast("cpu", torch.bfloat16), proximal.recording() as moments:
        assert module(x).dtype == torch.bfloat16
    assert all(m is not None and m.dtype == torch.float32 for m in moments)
    assert moments[0] is not None
    torch.testing.assert_close(moments[0][:4, :4], x.T @ x)


@pytest.mark.parametrize("tau", [1.0, 1e6, 1e30])
def test_singular_inputs_are_safe(tau: float) -> None:
    """Fewer rows than columns, a dead input and two equal ones, far above 1/tau in size."""
    x = draw(3, 40).float() * 1e3
    x[:, 0], x[:, 2] = 0.0, x[:, 1]
    layer = nn.Linear(40, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(draw(5, 40, seed=1))
    ((gradient,), (step,)) = steps_of(layer, x, tau)
    assert step.dtype == torch.float32
    assert (step.double() * gradient.double()).sum() > 0, "not a descent direction"
    # The gradient lies in the span of the inputs, where A has an inverse. What rounding puts
    # outside of it must not outweigh the rest, however large tau is.
    second = x.double().T @ x.double() / 3
    best = gradient.double() @ torch.linalg.pinv(second, rtol=1e-9)
    assert (step - best).norm() < best.norm()


def test_an_indefinite_moment_is_safe() -> None:
    """Rounding may leave an eigenvalue below 0; it counts as 0."""
    layer = nn.Linear(2, 1, bias=False).double()
    proximal = ProximalPreconditioner(layer, 0.5)
    moment = torch.diag(torch.tensor([2.0, -9.0, 1.0], dtype=torch.float64))  # the 1 counts rows
    named: dict[Tensor, Tensor] = {layer.weight: torch.ones(1, 2, dtype=torch.float64)}
    proximal.apply(named, [moment])
    expected = torch.tensor([[1 / (2 + 2), 1 / (0 + 2)]], dtype=torch.float64)
    torch.testing.assert_close(named[layer.weight], expected)


def test_a_step_without_gradients_changes_nothing() -> None:
    module = mlp(0).double()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    updater = updater_of(module)
    with updater.recording() as moments:
        module(draw(BATCH, 4))
    updater.end_shard(0, moments)
    updater.step(0)
    updater.end_shard()
    updater.step(1)
    assert_same_bits(module.state_dict(), before)
