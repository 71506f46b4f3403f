"""Outer steps: by hand, what becomes of buffers, constraints, layouts of memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learning.policies.outer import OuterStep, agree
from learning.policies.update import Updater
from learning.settings import ConstantSchedule, OuterSettings, SGDSettings
from tests.learning.helpers import assert_same_bits

PLAIN = SGDSettings(lr=0.1, momentum=0.0)


class Vector(nn.Module):
    """One parameter of two numbers, and buffers of three kinds."""

    mean: Tensor
    count: Tensor
    ready: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.0, -1.0]))
        for name, value in (("mean", 1.0), ("count", 3), ("ready", False)):
            self.register_buffer(name, torch.tensor(value))


def outer_step(module: nn.Module, settings: OuterSettings) -> OuterStep:
    updater = Updater(
        module.named_parameters(), PLAIN, ConstantSchedule(), index=1, steps=9, batch=4
    )
    return OuterStep(settings, updater, lambda: list(module.buffers()))


def test_two_outer_steps_by_hand() -> None:
    """All numbers are sums of a few powers of two, so every operation is exact."""
    settings = OuterSettings(every=2, lr=0.5, momentum=0.5)
    lanes = [Vector(), Vector()]
    twins = [outer_step(lane, settings) for lane in lanes]
    with torch.no_grad():
        lanes[0].p.copy_(torch.tensor([0.5, -1.0]))
        lanes[1].p.copy_(torch.tensor([0.25, -3.0]))
    agree(0, twins)
    assert lanes[0].p[0] == 0.5  # not yet
    agree(1, twins)
    # [1, -1] - mean [0.375, -2] = [0.625, 1] = v; less 0.5 (delta + 0.5 v)
    for lane in lanes:
        assert lane.p.tolist() == [1 - 0.5 * (0.625 + 0.3125), -1 - 0.5 * 1.5]
    with torch.no_grad():
        for lane, x in zip(lanes, (0.03125, 0.28125), strict=True):
            lane.p[0] = x
    agree(3, twins)
    # 0.53125 - 0.15625 = 0.375; v = 0.3125 + 0.375, and of the other 0.5 * 1 + 0
    for lane, twin in zip(lanes, twins, strict=True):
        assert lane.p.tolist() == [0.53125 - 0.5 * (0.375 + 0.34375), -1.75 - 0.5 * (0 + 0.25)]
        assert twin.state_dict()["velocity.p"].tolist() == [0.6875, 0.5]
        assert torch.equal(twin.state_dict()["parameters.p"], lane.p)


def test_buffers_become_the_mean_and_counters_the_first() -> None:
    lanes = [Vector() for _ in range(3)]
    twins = [outer_step(lane, OuterSettings(every=1)) for lane in lanes]
    for i, lane in enumerate(lanes):
        lane.mean.fill_([0.1, 0.1, 0.3][i])
        lane.count.fill_(10 + i)
        lane.ready.fill_(i == 0)
    agree(0, twins)
    tenths = torch.tensor([0.1, 0.3])
    for lane in lanes:
        assert lane.mean == ((tenths[0] + tenths[0]) + tenths[1]) / 3
        assert lane.count == 10 and lane.ready
    for lane in lanes:
        lane.mean.fill_(0.1)
    agree(1, twins)  # the same in all, though (0.1 + 0.1 + 0.1) / 3 is another number
    assert all(lane.mean == tenths[0] for lane in lanes)


def test_what_nobody_changed_stays_to_the_bit() -> None:
    lanes = [Vector() for _ in range(3)]
    for lane in lanes:
        lane.p.data.fill_(0.1)
    twins = [outer_step(lane, OuterSettings(every=1)) for lane in lanes]
    for step in range(3):
        agree(step, twins)
    assert all(torch.equal(lane.p, torch.full((2,), 0.1)) for lane in lanes)


def test_constraints_hold_after_an_outer_step() -> None:
    """And what all agreed on is what they go on from."""
    module = Vector()
    parameters = list(module.named_parameters())
    updater = Updater(parameters, PLAIN, ConstantSchedule(), index=1, steps=9, batch=4)

    def clamp() -> None:
        module.p.clamp_(-0.5, 0.5)

    outer = OuterStep(OuterSettings(every=1), updater, constrain=clamp)
    agree(0, [outer])
    assert module.p.tolist() == [0.5, -0.5]
    assert outer.state_dict()["parameters.p"].tolist() == [0.5, -0.5]


def test_layouts_of_memory_keep_the_bits() -> None:
    """A twin's message is contiguous, a parameter may not be."""
    states = []
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            convolutions = [nn.Conv2d(3, 5, 3) for _ in range(3)]
            for convolution in convolutions:
                convolution.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        twins = [outer_step(c, OuterSettings(every=1)) for c in convolutions]
        for step in range(3):
            for i, convolution in enumerate(convolutions):
                generator = torch.Generator().manual_seed(3 * step + i)
                noise = torch.randn(5, 3, 3, 3, generator=generator)
                convolution.weight.data.add_(noise)
            agree(step, twins)
        states.append(twins[0].state_dict())
        assert convolutions[0].weight.is_contiguous(memory_format=layout)
    assert_same_bits(*states)
