"""Updates inside the backward pass: the bits of the plain updater, one gradient at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from learning.policies.fused import FusedUpdater
from learning.policies.update import Updater
from learning.settings import (
    AdamWSettings,
    CosineSchedule,
    OptimizerSettings,
    SGDSettings,
)
from tests.learning.helpers import assert_same_bits, convnet, mlp

BATCH = 8
OPTIMIZERS = [
    SGDSettings(lr=0.1),
    SGDSettings(lr=0.1, nesterov=True, weight_decay=0.02),
    SGDSettings(lr=0.1, momentum=0.0),
    AdamWSettings(lr=0.03, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
]


class Shared(nn.Module):
    """A weight used twice, a parameter whose gradient is what arrives, one without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(BATCH, 4))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(x))) + self.shift


def shared() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Shared()


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("mlp", lambda: mlp(0, norm=True), (4,)),
    ("convnet", lambda: convnet(0), (2, 4, 4)),
    ("shared", shared, (4,)),
]


def make(kind: type[Updater], module: nn.Module, optimizer: OptimizerSettings) -> Updater:
    schedule = CosineSchedule(warmup=0.2)
    return kind(module.named_parameters(), optimizer, schedule, index=1, steps=10, batch=BATCH)


def inputs(step: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, *shape, generator=generator).to(dtype)
    return x.requires_grad_(), torch.randn(BATCH, 1, generator=generator).to(dtype)


def advance(
    updater: Updater, module: nn.Module, step: int, shape: tuple[int, ...], weight: float = 1.0
) -> Tensor:
    """One step as a block makes it; returns the gradient at its input."""
    x, r = inputs(step, shape, next(module.parameters()).dtype)
    h = module(x)
    (back,) = updater.backward(
        h, (h.detach() * r).sin(), updater.parameters, [x], step=step, weight=weight
    )
    updater.end_shard()
    updater.step(step)
    assert back is not None and x.grad is None
    assert all(p.grad is None for p in module.parameters())
    return back


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "build", "shape"), CASES, ids=[c[0] for c in CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_as_the_plain_updater(name, build, shape, optimizer, dtype) -> None:
    plain, fused = build().to(dtype), build().to(dtype)
    one, other = make(Updater, plain, optimizer), make(FusedUpdater, fused, optimizer)
    for step in range(4):
        weight = 0.3 if step == 2 else 1.0
        backs = [
            advance(one, plain, step, shape, weight),
            advance(other, fused, step, shape, weight),
        ]
        assert torch.equal(backs[0], backs[1])
        assert_same_bits(plain.state_dict(), fused.state_dict())
        assert_same_bits(one.state_dict(), other.state_dict())
    assert not torch.equal(*(next(m.parameters()) for m in (build().to(dtype), fused)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_states_are_interchangeable(optimizer: OptimizerSettings) -> None:
    """A run saved by one continues with the same bits under the other."""
    source = mlp(0)
    first = make(FusedUpdater, source, optimizer)
    for step in range(3):
        advance(first, source, step, (4,))
    for kind in (Updater, FusedUpdater):
        target = mlp(1)
        second = make(kind, target, optimizer)
        advance(second, target, 9, (4,))  # something to forget
        target.load_state_dict(source.state_dict())
        second.load_state_dict(first.state_dict())
        reference = mlp(0)
        third = make(Updater, reference, optimizer)
        for step in range(4):
            advance(third, reference, step, (4,))
        advance(second, target, 3, (4,))
        assert_same_bits(target.state_dict(), reference.state_dict())
        assert_same_bits(second.state_dict(), third.state_dict())


def test_autocast_and_channels_last() -> None:
    states = []
    for kind in (Updater, FusedUpdater):
        module = convnet(0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        updater = make(kind, module, OPTIMIZERS[1])
        for step in range(3):
            x, r = inputs(step, (2, 4, 4), torch.float32)
            with torch.autocast("cpu", torch.bfloat16):
                h = module(x)
            updater.backward(h, r.to(h.dtype).expand_as(h), updater.parameters, step=step)
            updater.end_shard()
            updater.step(step)
        states.append({n: t.clone() for n, t in module.state_dict().items()})
    assert_same_bits(*states)


def live_bytes(module: nn.Module) -> int:
    return sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)


def peak(kind: type[Updater]) -> tuple[int, int, int]:
    """Most bytes of gradients at once, and the bytes of all and of the largest parameter."""
    module = mlp(0)
    updater = make(kind, module, SGDSettings())
    counted: list[int] = []
    updater.observer = lambda gradients: counted.append(sum(g.nbytes for g in gradients.values()))
    hooks = [
        p.register_post_accumulate_grad_hook(lambda _: counted.append(live_bytes(module)))
        for p in module.parameters()
    ]
    advance(updater, module, 0, (4,))
    for hook in hooks:
        hook.remove()
    sizes = [p.nbytes for p in module.parameters()]
    assert live_bytes(module) == 0
    return max(counted), sum(sizes), max(sizes)


def test_only_one_gradient_lives_at_a_time() -> None:
    most, total, _ = peak(Updater)
    assert most == total
    most, total, largest = peak(FusedUpdater)
    assert most == largest < total / 3


def test_parts_are_updated_by_passes_of_their_own() -> None:
    """As a block does it: the auxiliary network first, then the block itself."""
    states = []
    for kind in (Updater, FusedUpdater):
        body, head = mlp(0)[:3], mlp(0)[3]
        updater = make(kind, nn.Sequential(body, head), OPTIMIZERS[3])
        own = len(list(body.parameters()))
        for step in range(3):
            x, r = inputs(step, (4,), torch.float32)
            output = body(x)
            h = output.detach().requires_grad_()
            loss = (head(h) * r).square().sum()
            auxiliary = updater.parameters[own:]
            (at_h,) = updater.backward(loss, None, auxiliary, [h], step=step, start=own)
            # A gradient for others may go through the graph before the block's own.
            (before,) = updater.backward(output, at_h, (), [x], step=step, retain_graph=True)
            updater.backward(output, at_h, updater.parameters[:own], step=step)
            updater.end_shard()
            updater.step(step)
            assert before is not None and before.shape == x.shape
        states.append({n: t for m in (body, head) for n, t in m.state_dict().items()})
        states[-1] |= updater.state_dict()
    assert_same_bits(*states)


def test_a_graph_made_with_copies_updates_the_parameters() -> None:
    """Delayed rules stash the weights of the forward pass."""
    states = []
    for kind in (Updater, FusedUpdater):
        module = mlp(0)
        updater = make(kind, module, OPTIMIZERS[0])
        x, r = inputs(0, (4,), torch.float32)
        copies = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
        h = functional_call(module, copies, x)
        with torch.no_grad():
            module[0][0].weight.add_(1.0)  # the weights have moved on
        updater.backward(h, r.expand_as(h), list(copies.values()), step=0)
        updater.end_shard()
        updater.step(0)
        assert all(c.grad is None for c in copies.values())
        states.append(module.state_dict())
    assert_same_bits(*states)


def test_gradients_left_by_the_user_do_not_count() -> None:
    states = []
    for stale in (None, 7.0):
        module = mlp(0)
        for p in module.parameters():
            p.grad = None if stale is None else torch.full_like(p, stale)
        updater = make(FusedUpdater, module, OPTIMIZERS[0])
        advance(updater, module, 0, (4,))
        states.append(module.state_dict())
    assert_same_bits(*states)


def test_only_its_own_backward_steps() -> None:
    module = mlp(0)
    updater = make(FusedUpdater, module, OPTIMIZERS[0])
    advance(updater, module, 0, (4,))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    module(torch.ones(BATCH, 4)).sum().backward()
    assert_same_bits(module.state_dict(), before)


@pytest.mark.parametrize("kind", [Updater, FusedUpdater])
def test_observers_see_the_mean_gradients(kind: type[Updater]) -> None:
    module = mlp(0).double()
    updater = make(kind, module, SGDSettings(lr=0.0))
    seen: dict[str, Tensor] = {}
    updater.observer = lambda gradients: seen.update({n: g.clone() for n, g in gradients.items()})
    advance(updater, module, 0, (4,), weight=0.5)
    x, r = inputs(0, (4,), torch.float64)
    h = module(x)
    expected = torch.autograd.grad(h, list(module.parameters()), (h.detach() * r).sin())
    assert sorted(seen) == sorted(n for n, _ in module.named_parameters())
    for (name, _), gradient in zip(module.named_parameters(), expected, strict=True):
        assert torch.equal(seen[name], gradient * 0.5 / BATCH)


def test_what_cannot_be_right_is_caught() -> None:
    module = mlp(0)
    updater = make(FusedUpdater, module, OPTIMIZERS[0])
    x, _ = inputs(0, (4,), torch.float32)
    options: dict[str, Any] = {"step": 0, "retain_graph": True}
    with pytest.raises(AssertionError, match="stepped"):
        updater.backward(module(x).sum(), None, updater.parameters, **options)
    with pytest.raises(AssertionError, match="by `backward`"):
        updater.add([torch.ones(())])


@pytest.mark.parametrize("kind", [Updater, FusedUpdater])
def test_an_output_without_graph_changes_nothing(kind: type[Updater]) -> None:
    module = mlp(0)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    updater = make(kind, module, OPTIMIZERS[3])
    x, _ = inputs(0, (4,), torch.float32)
    assert updater.backward(torch.ones(2), None, updater.parameters, [x], step=0) == [None]
    updater.end_shard()
    updater.step(0)
    assert_same_bits(module.state_dict(), before)
    assert updater.state_dict() == {}
