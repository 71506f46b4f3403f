"""Built-in networks have the sizes one gets by hand and depend on their seed alone."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from learning.errors import UserError
from learning.networks import CustomSettings, MLPSettings, ResNetSettings, build_network
from learning.objectives.heads import HeadSettings, make_head
from learning.units import units_of
from tests.learning.helpers import assert_same_bits

CIFAR = (3, 32, 32)
SMALL = ResNetSettings(widths=(2, 4), depths=1)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def names(model: nn.Module) -> list[str]:
    return [unit.name for unit in units_of(model)]


def test_the_default_resnet_is_cifar_resnet_18():
    with torch.device("meta"):
        model = ResNetSettings().build(CIFAR, 10)
    assert count(model) == 11_173_962
    stages = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert names(model) == ["stem", *stages, "head"]


def test_small_resnet_by_hand():
    model = build_network(SMALL, (3, 8, 8), 5, 0)
    stem = 2 * 3 * 9 + 4
    first = 2 * (2 * 2 * 9) + 2 * 4  # no projection: same width, stride 1
    second = (4 * 2 * 9) + (4 * 4 * 9) + 2 * 8 + (4 * 2 + 8)
    assert count(model) == stem + first + second + (4 * 5 + 5)
    shapes, h = {}, torch.zeros(2, 3, 8, 8)
    for unit in units_of(model):
        h = unit.module(h)
        shapes[unit.name] = tuple(h.shape)
    assert shapes == {
        "stem": (2, 2, 8, 8),
        "layer1.0": (2, 2, 8, 8),
        "layer2.0": (2, 4, 4, 4),
        "head": (2, 5),
    }


def test_depths_and_strides_of_each_stage():
    model = ResNetSettings(widths=(2, 2, 2), depths=(1, 2, 3), strides=(2, 1, 2)).build(CIFAR, 4)
    assert names(model)[1:-1] == [
        "layer1.0",
        *(["layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer3.2"]),
    ]
    assert nn.Sequential(*list(model)[:-1])(torch.zeros(1, *CIFAR)).shape == (1, 2, 8, 8)


def test_a_residual_block_adds_its_input():
    block = list(units_of(build_network(SMALL, (3, 8, 8), 5, 0)))[1].module.eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(block(x), torch.relu(x))


def test_lists_of_the_wrong_length_are_refused():
    with pytest.raises(UserError, match="one entry for each of the 4"):
        ResNetSettings(depths=(2, 2)).build(CIFAR, 10)
    with pytest.raises(UserError, match="strides"):
        ResNetSettings(strides=(1, 2)).build(CIFAR, 10)


def test_a_resnet_needs_images():
    with pytest.raises(UserError, match=r"not \(64,\): use network.kind = mlp"):
        ResNetSettings().build((64,), 10)


@pytest.mark.parametrize(("normalization", "extra"), [("none", 0), ("batch", 2), ("layer", 2)])
def test_mlp_by_hand(normalization, extra):
    settings = MLPSettings(widths=(7, 5), normalization=normalization)
    model = build_network(settings, (2, 3, 4), 3, 0)
    assert count(model) == (24 * 7 + 7) + (7 * 5 + 5) + extra * (7 + 5) + (5 * 3 + 3)
    assert names(model) == ["layer1", "layer2", "head"]
    assert model(torch.zeros(2, 2, 3, 4)).shape == (2, 3)


def test_an_mlp_without_hidden_layers_is_linear():
    model = build_network(MLPSettings(widths=()), (2, 3), 4, 0)
    assert count(model) == 6 * 4 + 4
    assert model(torch.zeros(5, 2, 3)).shape == (5, 4)


def test_mlp_settings_are_followed():
    model = build_network(MLPSettings(widths=(3,), activation="gelu", dropout=0.4), (4,), 2, 0)
    modules = list(model.modules())
    assert any(isinstance(m, nn.GELU) for m in modules)
    assert not any(isinstance(m, nn.ReLU) for m in modules)
    assert [m.p for m in modules if isinstance(m, nn.Dropout)] == [0.4]
    with pytest.raises(ValidationError):
        MLPSettings(widths=(3, 0))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (MLPSettings(widths=(5,)), (4,)),
        (SMALL, (3, 8, 8)),
        (CustomSettings(factory="tests.learning.helpers:make_custom"), (4,)),
    ],
)
def test_weights_depend_on_the_seed_alone(settings, shape):
    torch.manual_seed(1)
    first = build_network(settings, shape, 3, seed=7).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second = build_network(settings, shape, 3, seed=7).state_dict()
    assert torch.equal(torch.rand(3), expected)  # the global generator was kept
    assert_same_bits(first, second)
    other = build_network(settings, shape, 3, seed=8).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_custom_factory_gets_its_arguments():
    settings = CustomSettings(factory="tests.learning.helpers:make_custom", arguments={"width": 9})
    assert count(build_network(settings, (4,), 3, 0)) == 4 * 9 + 9 + 9 * 3 + 3


@pytest.mark.parametrize(
    "factory", ["tests.learning.no_such_module:make", "tests.learning.helpers:no_such_function"]
)
def test_a_factory_that_cannot_be_imported(factory):
    with pytest.raises(UserError, match=r"no_such.*cannot be imported.*package.module:function"):
        build_network(CustomSettings(factory=factory), (4,), 3, 0)


def test_a_factory_needs_a_colon():
    with pytest.raises(ValidationError, match="factory"):
        CustomSettings(factory="tests.learning.helpers.make_custom")


@pytest.mark.parametrize(
    ("kind", "grid", "shape", "weights"),
    [
        ("linear", 1, (8, 5, 5), 8 * 3 + 3),
        ("linear", 2, (8, 5, 5), 8 * 4 * 3 + 3),
        ("linear", 9, (8, 5, 4), 8 * 20 * 3 + 3),  # no more cells than the image has
        ("linear", 2, (8,), 8 * 3 + 3),
        ("conv", 1, (8, 5, 5), 8 * 6 * 9 + 2 * 6 + 6 * 3 + 3),
        ("conv", 2, (8, 5, 5), 8 * 6 * 9 + 2 * 6 + 6 * 4 * 3 + 3),
        ("conv", 9, (8, 5, 5), 8 * 6 * 9 + 2 * 6 + 6 * 9 * 3 + 3),  # stride 2 leaves 3 x 3
        ("conv", 2, (8,), 8 * 6 + 2 * 6 + 6 * 3 + 3),
    ],
)
def test_auxiliary_heads(kind, grid, shape, weights):
    head = make_head(HeadSettings(kind=kind, grid=grid, width=6), shape, 3)
    assert head(torch.randn(2, *shape)).shape == (2, 3)
    assert sum(p.numel() for p in head.parameters()) == weights


def test_a_convolutional_head_refuses_sequences():
    with pytest.raises(UserError, match=r"not \(8, 5\): cut the network at another unit"):
        make_head(HeadSettings(kind="conv"), (8, 5), 3)


def test_a_convolutional_head_on_one_pixel_has_one_gradient():
    head = make_head(HeadSettings(kind="conv", width=16), (8, 1, 1), 3)
    x = torch.randn(4, 8, 1, 1)
    gradients = []
    for _ in range(8):
        junk = [torch.full((5000,), 1e9) for _ in range(3)]  # what uninitialised memory would show
        del junk
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = head(x)
        scores.float().square().sum().backward()
        gradients.append([p.grad.clone() for p in head.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
