"""AugLocal: which units are copied, that copies are fresh, how they are glued, its local end."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    assert picked(6, 6) == [0, 1, 2, 3, 4, 5]
    assert picked(6, 1) == [5] and picked(6, 2) == [2, 5] and picked(6, 3) == [1, 3, 5]
    assert picked(5, 2) == [1, 4]  # round(2.5) - 1
    for units in range(1, 40):
        for depth in range(1, units + 1):
            picks = picked(units, depth)
            assert len(set(picks)) == depth and picks == sorted(picks) and picks[0] >= 0


def test_the_paper_s_picks_where_every_block_is_a_unit():
    """Indices round(l + (L-l-1) i / d), i = 1..d, of layers 0..L-1 behind layer l."""
    for total, at, depth in ((11, 3, 3), (55, 20, 5), (55, 0, 6), (8, 6, 1)):
        paper = [round(at + (total - at - 1) * i / depth) for i in range(1, depth + 1)]
        assert [at + 1 + p for p in picked(total - at - 1, depth)] == paper


def test_the_pyramid():
    """The paper's depths, round(d (1 - tau t) + tau t) with t = l / (L-2), l = 0..L-2."""
    rule = AugLocal(depth=6)
    blocks = 10
    paper = [max(1, round(6 * (1 - 0.5 * x / 8) + 0.5 * x / 8)) for x in range(9)]
    assert [rule.depth_of(k, blocks) for k in range(1, blocks)] == paper
    assert paper[0] == 6 and paper[-1] == round(3.5)
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
    assert picked(4, 2) == [1, 3] and isinstance(unit1, nn.Tanh) and isinstance(unit2, nn.Tanh)
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
