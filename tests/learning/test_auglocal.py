"""AugLocal: which units are copied, that copies are fresh, how they are glued, its local end."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from learning.errors import UserError
from learning.networks import GPTSettings, ResNetSettings, VGG8bSettings, build_network
from learning.networks.resnet import ResidualBlock
from learning.objectives.patterns import fresh, glued, input_shapes, output_shape
from learning.rules import AugLocal, Local
from learning.rules.auglocal import picked
from learning.units import Unit, units_of
from tests.learning.helpers import (
    assert_same_bits,
    batch_of,
    convnet,
    gradients_of,
    mlp,
    model_state,
    shards_of,
    train,
)
from tests.learning.local_rules import assert_goes_on, engine_of


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_units_are_picked_evenly_and_the_last_one_is_among_them():
    assert picked(0, 6, 6) == [1, 2, 3, 4, 5, 6]
    assert picked(0, 6, 1) == [6] and picked(0, 6, 2) == [3, 6] and picked(0, 6, 3) == [2, 4, 6]
    for units in range(1, 40):
        for depth in range(1, units + 1):
            picks = picked(3, units, depth)
            assert len(set(picks)) == depth and picks == sorted(picks)
            assert picks[0] > 3 and picks[-1] == 3 + units


def test_ties_fall_as_in_the_authors_code():
    """They round positions in the network: behind an odd one ties fall otherwise than distances."""
    assert picked(1, 53, 2) == [28, 54]  # 27.5 goes to 28, although 26.5 would go to 26
    assert picked(0, 5, 2) == [2, 5] and picked(1, 5, 2) == [4, 6]
    for total in range(2, 56):
        for at in range(total - 1):
            for depth in range(1, total - at):
                theirs = [round(at + (total - at - 1) / depth * i) for i in range(1, depth + 1)]
                assert picked(at, total - at - 1, depth) == theirs


def test_the_copies_are_those_of_the_picked_positions():
    """Two hidden units a block, so that the block's number is not the number of its units."""
    sizes = range(10, 22)  # of hidden unit 0, 1, ...: a copy is known by what it makes
    layers = [nn.Linear(a, b) for a, b in pairwise([4, *sizes])]
    model = nn.Sequential(*layers, nn.Linear(21, 3))
    rule = AugLocal(depth=4, slope=0)
    blocks = engine_of(rule, model, [str(i) for i in range(2, 12, 2)]).blocks
    for k, block in enumerate(blocks[:-1], start=1):
        at, later = 2 * k - 1, 12 - 2 * k
        expected = (
            [round(at + later / 4 * i) for i in range(1, 5)] if later > 4 else [*range(at + 1, 12)]
        )
        copies = [m for n, m in block.objective.head.features.named_children() if "unit" in n]
        assert [sizes.index(copy.out_features) for copy in copies] == expected


def published_cost(dims: list[int], at: int, depth: int) -> int:
    """Multiplications a sample of the authors' auxiliary network for CIFAR ResNets, by hand.

    Two 3x3 convolutions a copy. It halves once for each time that the channels have doubled, and
    then, as when the channels change, has a projection.
    """
    size, due, channels, cost = 32 * 16 // dims[at], 0, dims[at], 0
    for pick in picked(at, len(dims) - at - 1, depth):
        due += (dims[pick] // channels).bit_length() - 1
        halving, due = (2, due - 1) if due else (1, 0)
        size //= halving
        cost += size**2 * 9 * (channels + dims[pick]) * dims[pick]
        if halving == 2 or channels != dims[pick]:
            cost += size**2 * channels * dims[pick]
        channels = dims[pick]
    return cost


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_auxiliary_networks_of_resnet_110_cost_what_the_published_ones_do(depth):
    dims = [16] * 19 + [32] * 18 + [64] * 18
    units = units_of(build_network(ResNetSettings(preset="resnet110"), (3, 32, 32), 10, 0))[:-1]
    shapes = [*input_shapes(units, (3, 32, 32))[1:], (64, 8, 8)]  # what each unit makes
    ratios = []
    for at in range(0, 54, 3):
        d = min(depth, 54 - at)
        picks = picked(at, 54 - at, d)
        features = glued([units[i] for i in picks], [shapes[i - 1] for i in picks], shapes[at])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features.eval()(torch.zeros(1, *shapes[at]))
        ratios.append(counter.get_total_flops() / 2 / published_cost(dims, at, d))
    # A copy reads as many channels as its pattern, behind a cheap 1x1 convolution, where theirs
    # reads those that there are: from 16 to 64 that is 2 * 64 for 16 + 64.
    assert min(ratios) > 0.9 and max(ratios) < 1.6


def test_the_pyramid():
    """The authors' depths, round(d (1 - l tau / (L-2)) + l tau / (L-2)), l = 0..L-2."""
    rule = AugLocal(depth=6)
    blocks = 10
    paper = [max(1, round(6 * (1 - 0.5 * x / 8) + 0.5 * x / 8)) for x in range(9)]
    assert [rule.depth_of(k, blocks) for k in range(1, blocks)] == paper
    assert paper[0] == 6 and paper[-1] == round(3.5)
    for depth in range(1, 9):
        for last in range(3, 57):
            ways = [x * 0.5 / (last - 2) for x in range(last - 1)]
            theirs = [max(1, round(depth * (1 - way) + way)) for way in ways]
            assert [AugLocal(depth=depth).depth_of(k, last) for k in range(1, last)] == theirs
    assert {AugLocal(depth=6, slope=0).depth_of(k, blocks) for k in range(1, blocks)} == {6}
    assert AugLocal(depth=6, slope=1).depth_of(9, blocks) == 1
    assert AugLocal(depth=3).depth_of(1, 2) == 3
    assert AugLocal(depth=0).depth_of(1, 2) == 0


def test_copies_are_fresh_and_leave_the_pattern_alone():
    block = ResidualBlock(3, 4, 2).requires_grad_(False)
    with torch.no_grad():
        block(torch.randn(4, 3, 4, 4))  # running statistics
    before = copy.deepcopy(block.state_dict())
    module = fresh(Unit("block", block.eval()))
    assert_same_bits(block.state_dict(), before)
    assert module.training and all(p.requires_grad for p in module.parameters())
    for name, tensor in module.state_dict().items():
        assert tensor.shape == before[name].shape
        if name.endswith("conv1.weight"):
            assert not torch.equal(tensor, before[name])
    assert not module.norm1.running_mean.any()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.factor


def test_a_unit_that_cannot_be_drawn_anew_is_refused():
    layers = [nn.Linear(4, 6), nn.Linear(6, 6), nn.Sequential(Scaled()), nn.Linear(6, 3)]
    with pytest.raises(UserError, match=r"unit '2.0' has parameters \(factor\) but no reset_par"):
        engine_of(AugLocal(), nn.Sequential(*layers), ("1", "3"))
    engine_of(AugLocal(depth=1), nn.Sequential(*layers[:2], layers[3]), ("1",))


def test_the_head_is_never_copied():
    """Whatever the depth: a layer is two units here, and behind block 2 there is one layer."""
    first, second, _ = (block.objective for block in engine_of(AugLocal(depth=9)).blocks)
    assert len(first.head.features) == 4 and len(second.head.features) == 2
    last = engine_of(AugLocal(depth=9), at=("1.0", "3")).blocks[1].objective
    assert [name for name, _ in last.head.named_children()] == ["linear"]


def test_fitting_units_need_no_adapters():
    model = build_network(ResNetSettings(widths=(4, 6, 8), depths=1), (1, 8, 8), 3, 0)
    units = units_of(model)
    shapes = input_shapes(units, (1, 8, 8))
    assert shapes == [(1, 8, 8), (4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2)]
    module = glued(units[2:4], shapes[2:4], (4, 8, 8))
    assert [n for n, _ in module.named_children()] == ["unit1", "unit2"]
    assert output_shape(module, (4, 8, 8)) == (8, 2, 2)


def test_other_channels_get_a_1x1_convolution_and_strides_stay():
    model = build_network(ResNetSettings(widths=(4, 6, 8), depths=1), (1, 8, 8), 3, 0)
    units, shapes = units_of(model), input_shapes(units_of(model), (1, 8, 8))
    module = glued([units[3]], [shapes[3]], (4, 8, 8))
    (adapter,) = module.adapter1
    assert isinstance(adapter, nn.Conv2d) and adapter.kernel_size == (1, 1)
    assert (adapter.in_channels, adapter.out_channels, adapter.bias) == (4, 6, None)
    assert output_shape(module, (4, 8, 8)) == (8, 4, 4)  # stride 2 of the copied unit


def test_a_unit_of_one_image_size_gets_a_pooled_image():
    units = units_of(build_network(VGG8bSettings(width=0.05), (1, 16, 16), 3, 0))
    shapes = input_shapes(units, (1, 16, 16))
    dense = next(i for i, unit in enumerate(units) if unit.name == "dense")
    module = glued([units[dense]], [shapes[dense]], (5, 16, 16))
    assert isinstance(module.adapter1[0], nn.AdaptiveAvgPool2d)
    assert output_shape(module, (5, 16, 16)) == (51,)


def test_images_become_vectors_by_pooling_and_vectors_get_a_linear_layer():
    unit = Unit("dense", nn.Linear(7, 5))
    assert output_shape(glued([unit], [(7,)], (3, 4, 4)), (3, 4, 4)) == (5,)
    assert output_shape(glued([unit], [(7,)], (4,)), (4,)) == (5,)
    with pytest.raises(UserError, match=r"'dense' reads activations of shape \(2, 7\)"):
        glued([unit], [(2, 7)], (4,))


@pytest.mark.parametrize("conv", [False, True])
def test_without_depth_it_is_local(conv):
    options = {"model": convnet(0), "at": ("1", "2"), "shape": (2, 4, 4)} if conv else {}
    states = []
    for rule in (AugLocal(depth=0), Local()):
        engine = engine_of(rule, **options)
        train(engine, range(4), shards_of(shape=options.get("shape", (4,))))
        states.append(model_state(engine))
    assert_same_bits(*states)


def test_gradients_by_hand():
    """Block 1 learns from tanh and a linear layer of its own behind it, not from the network's."""
    engine = engine_of(AugLocal(depth=2))
    x, y = batch_of(0)
    block = engine.blocks[0]
    head = block.objective.head
    unit1, unit2 = head.features.unit1, head.features.unit2
    assert isinstance(unit1, nn.Tanh) and isinstance(unit2, nn.Tanh)
    h = torch.tanh(torch.tanh(block.chain(x)))
    loss = F.cross_entropy(h @ head.linear.linear.weight.T + head.linear.linear.bias, y)
    weight = block.chain.units[0].weight
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradients_of(engine, 0, shards_of())[1]["0.0.weight"], expected)


def test_what_later_blocks_learn_does_not_matter():
    """Copies are patterns of architecture: no weight of a later block reaches an earlier one."""
    states = []
    for other in (0, 1):
        model = mlp(0)
        model[2].load_state_dict(mlp(other)[2].state_dict())
        engine = engine_of(AugLocal(depth=4), model)
        train(engine, range(3), shards_of())
        states.append(model_state(engine))
    for name in ("0.0.weight", "1.0.weight"):
        assert torch.equal(states[0][name], states[1][name])


def test_transformers_are_copied_too():
    settings = GPTSettings(width=8, depth=3, heads=2)
    model = build_network(settings, (5,), 3, 0, tokens=True)
    later = units_of(model)[2:-1]
    module = glued(later, input_shapes(later, (5, 8)), (5, 8))
    assert module(torch.randn(4, 5, 8)).shape == (4, 5, 8)


@pytest.mark.parametrize("conv", [False, True])
def test_state_goes_on(conv):
    def make(seed: int):
        if conv:
            return engine_of(AugLocal(), convnet(seed), ("0.2", "1"), shape=(2, 4, 4), seed=seed)
        return engine_of(AugLocal(depth=3), mlp(seed, norm=True), seed=seed)

    assert_goes_on(make, shards_of(shape=(2, 4, 4) if conv else (4,)))
