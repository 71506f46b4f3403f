"""Updates: sums over shards, torch's own optimizers, clipping, and resuming."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learning.errors import UserError
from learning.policies.update import Updater
from learning.settings import (
    AdamWSettings,
    ConstantSchedule,
    MultiStepSchedule,
    OptimizerSettings,
    ScheduleSettings,
    SGDSettings,
)
from tests.learning.helpers import assert_same_bits

BATCH = 4
OPTIMIZERS = [
    SGDSettings(lr=0.1),
    SGDSettings(lr=0.1, nesterov=True, weight_decay=0.02),
    SGDSettings(lr=0.1, momentum=0.0),
    AdamWSettings(lr=0.03, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
]


def module(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def make(
    model: nn.Module,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings | None = None,
    index: int = 1,
    shards: int = 1,
) -> Updater:
    return Updater(
        model.named_parameters(),
        optimizer,
        schedule or ConstantSchedule(),
        index=index,
        steps=10,
        batch=BATCH,
        shards=shards,
    )


def gradients(model: nn.Module, step: int) -> list[Tensor | None]:
    """Gradients of the sum over a batch of some loss."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    return list(torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters())))


def advance(updater: Updater, model: nn.Module, step: int) -> None:
    updater.add(gradients(model, step))
    updater.end_shard()
    updater.step(step)


def make_torch(model: nn.Module, chosen: OptimizerSettings) -> torch.optim.Optimizer:
    options = chosen.model_dump(exclude={"kind", "clip"})
    kind = torch.optim.SGD if isinstance(chosen, SGDSettings) else torch.optim.AdamW
    return kind(model.parameters(), **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05, 1e6])
def test_equals_torch_bit_for_bit(optimizer: OptimizerSettings, clip):
    mine, theirs = module(), module()
    halved = MultiStepSchedule(milestones=(0.2,), factor=0.5)  # from step 2 of 10 on
    updater = make(mine, optimizer.model_copy(update={"clip": clip}), halved)
    reference = make_torch(theirs, optimizer)
    for step in range(5):
        advance(updater, mine, step)
        for parameter, gradient in zip(theirs.parameters(), gradients(theirs, step), strict=True):
            assert gradient is not None
            parameter.grad = gradient / BATCH
        if clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        if step == 2:
            reference.param_groups[0]["lr"] /= 2
        reference.step()
        assert_same_bits(mine.state_dict(), theirs.state_dict())
    assert all(parameter.grad is None for parameter in mine.parameters())


def test_clipping_bounds_the_step_of_the_whole_block():
    model = module()
    before = [p.detach().clone() for p in model.parameters()]
    advance(make(model, SGDSettings(lr=1.0, momentum=0.0, clip=0.05)), model, 0)
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-4)


def test_shards_and_weights_add_up():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    updater = make(model, SGDSettings(lr=1.0, momentum=0.0), shards=3)
    g = torch.ones(1, 1, dtype=torch.float64)
    updater.add([g])
    updater.add([g], weight=0.5)
    updater.end_shard(0)
    updater.add([None])
    updater.end_shard(1)
    updater.add([2 * g], weight=3.0)
    updater.end_shard(2)
    updater.step(0)
    assert model.weight.item() == -(1 + 0.5 + 6) / BATCH


def test_one_learning_rate_a_block():
    for index, lr in ((1, 0.5), (2, 0.25)):
        model = module()
        (weight, *_), gradient = model.parameters(), gradients(model, 0)[0]
        expected = weight.detach() - lr * gradient / BATCH
        advance(make(model, SGDSettings(lr=(0.5, 0.25), momentum=0.0), index=index), model, 0)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=1e-15)


def test_too_few_learning_rates_are_refused():
    with pytest.raises(UserError, match="lists 2 values, but there is a block 3"):
        make(module(), SGDSettings(lr=(0.1, 0.2)), index=3)


def test_frozen_parameters_stay():
    model = module()
    model[0].weight.requires_grad_(False)
    updater = make(model, SGDSettings(lr=1.0))
    assert updater.names == ["0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_round_trip_continues_bit_for_bit(optimizer):
    model = module()
    updater = make(model, optimizer)
    for step in range(3):
        advance(updater, model, step)
    state = {name: tensor.clone() for name, tensor in updater.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    assert {n.rsplit(".", 1)[0] for n in state} <= {n for n, _ in model.named_parameters()}
    other = module(1)
    resumed = make(other, optimizer)
    advance(resumed, other, 9)  # something to forget
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    assert_same_bits(resumed.state_dict(), kept)
    for step in (3, 4):
        advance(updater, model, step)
        advance(resumed, other, step)
    assert_same_bits(other.state_dict(), model.state_dict())
    assert_same_bits(resumed.state_dict(), updater.state_dict())
    assert_same_bits(state, kept)  # the loaded tensors were copied


def test_a_fresh_state_forgets_what_was_there():
    model = module()
    fresh = make(model, AdamWSettings()).state_dict()
    updater = make(model, AdamWSettings())
    advance(updater, model, 0)
    updater.load_state_dict(fresh)
    assert updater.state_dict() == {}


def test_a_block_without_parameters_has_nothing_to_update():
    updater = make(nn.ReLU(), SGDSettings())
    for step in range(3):
        updater.add([])
        updater.end_shard()
        updater.step(step)
    assert updater.state_dict() == {}
    updater.load_state_dict({})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_steps_without_gradients_leave_no_trace(optimizer: OptimizerSettings, clip) -> None:
    """Delayed rules have none at first: no shard at all, or shards with nothing in them."""
    optimizer = optimizer.model_copy(update={"clip": clip})
    mine, theirs = module(), module()
    updater, undisturbed = (make(m, optimizer, shards=2) for m in (mine, theirs))
    seen: list[dict[str, Tensor]] = []
    updater.observer = seen.append
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    updater.step(0)
    updater.end_shard(0)
    updater.end_shard(1)
    updater.step(1)
    assert_same_bits(mine.state_dict(), before)
    assert updater.state_dict() == {} and seen == []
    for step in (2, 3):
        for one, model in ((updater, mine), (undisturbed, theirs)):
            one.add(gradients(model, step))
            one.end_shard(0)
            one.end_shard(1)
            one.step(step)
        updater.step(step)  # and in the midst of a run
    assert_same_bits(mine.state_dict(), theirs.state_dict())
    assert_same_bits(updater.state_dict(), undisturbed.state_dict())
    assert len(seen) == 2


def test_observers_see_what_the_optimizer_gets_before_clipping():
    model = module()
    seen: dict[str, Tensor] = {}
    updater = make(model, SGDSettings(lr=1.0, momentum=0.0, clip=1e-3), shards=2)
    updater.observer = lambda named: seen.update({n: g.clone() for n, g in named.items()})
    first, second = gradients(model, 0), gradients(model, 1)
    updater.add(first, weight=0.5)
    updater.end_shard(0)
    updater.add(second[:2])
    updater.end_shard(1)
    updater.step(0)
    assert list(seen) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for i, gradient in enumerate(seen.values()):
        a, b = first[i], second[i]
        assert a is not None and b is not None
        assert torch.equal(gradient, (a * 0.5 + b if i < 2 else a * 0.5) / BATCH)


def test_backward_adds_what_autograd_gives():
    model, x = module(), torch.ones(BATCH, 3, dtype=torch.float64, requires_grad=True)
    by_hand, updater = make(module(), SGDSettings()), make(model, SGDSettings())
    h = model(x)
    g = torch.ones_like(h)
    expected = torch.autograd.grad(h, [*model.parameters(), x], g, retain_graph=True)
    by_hand.add(expected[2:4], start=2, weight=0.5)
    by_hand.end_shard()
    by_hand.step(0)
    idle = torch.zeros(1, requires_grad=True)
    back = updater.backward(
        h, g, updater.parameters[2:], [x, idle], step=0, start=2, weight=0.5, retain_graph=True
    )
    assert back[0] is not None and torch.equal(back[0], expected[4]) and back[1] is None
    (again,) = updater.backward(h, g, (), [x], step=0)
    assert again is not None and torch.equal(again, expected[4])
    updater.end_shard()
    updater.step(0)
    for mine, theirs in zip(updater.parameters, by_hand.parameters, strict=True):
        assert torch.equal(mine, theirs)


class Meeting(nn.Module):
    """Two parameters whose gradients are views of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.a.view(4, 4) + self.b.view(4, 4))


def test_gradients_that_share_memory_are_divided_once_each():
    """Whether with each other, with the gradient sent back, or with the one that arrived."""
    for module in (Meeting(), Adding()):
        updater = Updater(
            module.named_parameters(),
            SGDSettings(lr=1.0, momentum=0.0),
            ConstantSchedule(),
            index=1,
            steps=1,
            batch=8,
        )
        x = torch.ones(1, 4, 4).requires_grad_()
        arrived = torch.ones(1, 16)
        (back,) = updater.backward(
            module(x).reshape(1, 16), arrived, updater.parameters, [x], step=0
        )
        assert back is not None
        sent = back.clone()
        updater.end_shard()
        assert updater.step(0)
        for parameter in updater.parameters:
            assert torch.equal(parameter, torch.full_like(parameter, -1 / 8))
        assert torch.equal(back, sent) and torch.equal(arrived, torch.ones(1, 16))


class Adding(nn.Module):
    """Adds a parameter without broadcasting: its gradient is that of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) + self.p.flatten(1)).view(1, 4, 4)
