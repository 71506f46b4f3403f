"""Named convolutional networks and the vision transformer have the sizes one gets by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from learning.errors import UserError
from learning.networks import (
    BottleneckBlock,
    ResNetSettings,
    VGG8bSettings,
    ViTSettings,
    build_network,
)
from learning.units import units_of
from tests.learning.helpers import assert_same_bits

CIFAR = (3, 32, 32)
TINY_VIT = ViTSettings(patch=2, width=6, depth=2, heads=3, mlp_ratio=2)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes_of(model: nn.Module, *shape: int) -> dict[str, tuple[int, ...]]:
    """The output shape of every unit, without batch, for an input of `shape`."""
    shapes, h = {}, torch.zeros(2, *shape)
    for unit in units_of(model):
        h = unit.module(h)
        shapes[unit.name] = tuple(h.shape[1:])
    return shapes


# --- residual networks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "weights", "layers"),
    [
        # Layers as in the names: convolutions on the way, without shortcuts, and the head.
        ("resnet18", 11_173_962, 18),
        ("resnet32", 466_906, 32),
        ("resnet50", 23_520_842, 50),
        ("resnet110", 1_730_714, 110),
    ],
)
def test_presets_are_the_networks_of_their_names(preset, weights, layers):
    with torch.device("meta"):
        model = ResNetSettings(preset=preset).build(CIFAR, 10)
    assert count(model) == weights
    on_the_way = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(on_the_way) == layers


@pytest.mark.parametrize(("preset", "blocks"), [("resnet32", 15), ("resnet110", 54)])
def test_every_residual_block_is_a_unit(preset, blocks):
    with torch.device("meta"):
        model = ResNetSettings(preset=preset).build(CIFAR, 10)
    names = [unit.name for unit in units_of(model)]
    each = blocks // 3
    assert names == ["stem", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in range(each)), "head"]


def test_resnet32_by_hand():
    def stage(size: int, width: int) -> int:
        projection = size * width + 2 * width if size != width else 0
        first = 9 * size * width + 9 * width * width + 4 * width
        return first + projection + 4 * (18 * width * width + 4 * width)

    stem, head = 3 * 16 * 9 + 2 * 16, 64 * 10 + 10
    assert stem + stage(16, 16) + stage(16, 32) + stage(32, 64) + head == 466_906


def test_a_preset_is_the_same_network_as_its_values():
    preset = build_network(ResNetSettings(preset="resnet32"), CIFAR, 10, 3)
    spelled = build_network(ResNetSettings(widths=(16, 32, 64), depths=5), CIFAR, 10, 3)
    assert_same_bits(preset.state_dict(), spelled.state_dict())


def test_a_preset_resolves_to_values_that_can_be_read_again():
    settings = ResNetSettings(preset="resnet50")
    assert (settings.block, settings.depths) == ("bottleneck", (3, 4, 6, 3))
    assert ResNetSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_preset_refuses_other_values():
    with pytest.raises(
        ValidationError,
        match=r"network\.depths = 3 is not that of network\.preset = resnet32, \(5, 5, 5\): leave",
    ):
        ResNetSettings(preset="resnet32", depths=3)
    strided = ResNetSettings(preset="resnet32", strides=(2, 1, 2))
    assert shapes_of(strided.build((3, 8, 8), 4), 3, 8, 8)["layer3.4"] == (64, 2, 2)


def test_bottleneck_blocks_by_hand():
    block = BottleneckBlock(8, 3, 2)
    assert count(block) == 8 * 3 + 9 * 9 + 3 * 12 + 8 * 12 + 2 * (3 + 3 + 12 + 12)
    assert block(torch.zeros(2, 8, 6, 6)).shape == (2, 12, 3, 3)
    assert isinstance(BottleneckBlock(12, 3, 1).shortcut, nn.Identity)
    model = ResNetSettings(block="bottleneck", widths=(2, 4), depths=1).build((3, 8, 8), 5)
    assert shapes_of(model, 3, 8, 8) == {
        "stem": (2, 8, 8),
        "layer1.0": (8, 8, 8),
        "layer2.0": (16, 4, 4),
        "head": (5,),
    }


def test_a_bottleneck_block_adds_its_input():
    block = BottleneckBlock(8, 2, 1).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), torch.relu(x))


# --- VGG8b --------------------------------------------------------------------------------------


def test_vgg8b_of_the_paper():
    with torch.device("meta"):
        model = VGG8bSettings().build(CIFAR, 10)
    sizes = [3, 128, 256, 256, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(sizes))
    dense = 512 * 2 * 2 * 1024 + 2 * 1024
    assert count(model) == convolutions + dense + 1024 * 10 + 10


def test_vgg8b_shapes():
    model = VGG8bSettings(width=1 / 64).build(CIFAR, 10)
    assert shapes_of(model, *CIFAR) == {
        "conv1": (2, 32, 32),
        "conv2": (4, 16, 16),
        "conv3": (4, 16, 16),
        "conv4": (8, 8, 8),
        "conv5": (8, 4, 4),
        "conv6": (8, 2, 2),
        "dense": (16,),
        "head": (10,),
    }


@pytest.mark.parametrize(
    ("shape", "last"),
    [((1, 28, 28), (1, 1)), ((1, 8, 8), (1, 1)), ((1, 1, 1), (1, 1)), ((1, 9, 2), (4, 1))],
)
def test_vgg8b_pools_as_long_as_there_is_more_than_one_pixel(shape, last):
    shapes = shapes_of(VGG8bSettings(width=1 / 64).build(shape, 3), *shape)
    assert shapes["conv6"] == (8, *last)
    assert shapes["head"] == (3,)


def test_vgg8b_s_pooling_may_begin_the_next_unit():
    """The same function of the same weights; only what lies between units is not pooled yet."""
    last, first = (
        build_network(VGG8bSettings(width=1 / 64, pooling=pooling), (3, 16, 16), 5, 0).eval()
        for pooling in ("last", "first")
    )
    first.load_state_dict(last.state_dict())
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(x), last(x))
    between = [shapes_of(model, 3, 16, 16) for model in (last, first)]
    sizes = [[shape[-1] for shape in list(shapes.values())[:6]] for shapes in between]
    assert sizes == [[16, 8, 8, 4, 2, 1], [16, 16, 8, 8, 4, 2]]
    with torch.no_grad():
        small = VGG8bSettings(width=1 / 64, pooling="first").build((3, 2, 2), 5).eval()
    assert small(torch.zeros(2, 3, 2, 2)).shape == (2, 5)


def test_vgg8b_settings_are_followed():
    model = VGG8bSettings(width=0.001, activation="tanh", dropout=0.3).build((3, 8, 8), 3)
    modules = list(model.modules())
    assert count(model) == (27 + 5 * 9 + 6 * 2) + (1 + 2) + (3 + 3)  # widths of 1
    assert [m.p for m in modules if isinstance(m, nn.Dropout)] == [0.3] * 7
    assert sum(isinstance(m, nn.Tanh) for m in modules) == 7
    with pytest.raises(UserError, match=r"kind = vgg8b needs images .* not \(64,\)"):
        VGG8bSettings().build((64,), 3)


# --- vision transformer -------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "tokens"), [("mean", 4), ("token", 5)])
def test_vit_by_hand(pool, tokens):
    settings = TINY_VIT.model_copy(update={"pool": pool})
    model = build_network(settings, (3, 4, 4), 5, 0)
    c = 6
    embed = (3 * 4 * c + c) + tokens * c + (c if pool == "token" else 0)
    norms, attention = 2 * 2 * c, (c * 3 * c + 3 * c) + (c * c + c)
    mlp = (c * 2 * c + 2 * c) + (2 * c * c + c)
    assert count(model) == embed + 2 * (norms + attention + mlp) + 2 * c + (c * 5 + 5)
    assert shapes_of(model, 3, 4, 4) == {
        "embed": (tokens, c),
        "block1": (tokens, c),
        "block2": (tokens, c),
        "head": (5,),
    }


def test_vit_patches_are_the_image_in_reading_order():
    model = build_network(TINY_VIT, (1, 4, 6), 3, 0)
    embed = units_of(model)[0].module
    nn.init.zeros_(embed.positions)
    x = torch.randn(1, 1, 4, 6)
    before = embed(x)
    x[0, 0, 3, 2] += 1  # row 1 of patches, column 1 of three
    changed = (embed(x) != before).any(dim=-1)[0]
    assert changed.tolist() == [False] * 4 + [True, False]


def test_a_vit_without_positions_does_not_see_the_order():
    model = build_network(TINY_VIT, (1, 4, 4), 3, 0).eval()
    x = torch.randn(2, 1, 4, 4)
    swapped = torch.cat((x[:, :, 2:], x[:, :, :2]), dim=2)
    assert not torch.allclose(model(x), model(swapped), atol=1e-6)
    nn.init.zeros_(units_of(model)[0].module.positions)
    torch.testing.assert_close(model(x), model(swapped))


def test_a_vit_has_a_second_derivative():
    model = build_network(TINY_VIT, (1, 4, 4), 3, 0).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(model, (x,))


def test_a_vit_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"patch = 5 does not divide images of 10x12 pixels: use"):
        ViTSettings(patch=5).build((3, 10, 12), 3)
    with pytest.raises(UserError, match=r"width = 10 is not a multiple of network.heads = 3"):
        ViTSettings(width=10, heads=3).build(CIFAR, 3)
    with pytest.raises(UserError, match=r"kind = vit needs images .* not \(64,\)"):
        ViTSettings().build((64,), 3)
