"""InfoPro: its loss by hand, its schedule over blocks, its decoders, and its local end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learning.checks import check_program
from learning.errors import UserError
from learning.objectives.base import Told
from learning.objectives.reconstruction import (
    DenseDecoder,
    ImageDecoder,
    InformedClassifier,
    supervised_contrast,
)
from learning.rules import InfoPro, Local
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
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random

Y = torch.tensor([0, 2, 1, 2, 0])
IMAGES = {"shape": (2, 4, 4), "at": ("1", "2")}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_loss_by_hand():
    """Weight times the mean square over a sample's numbers plus weight times the cross-entropy."""
    head, decoder = nn.Linear(6, 3), DenseDecoder((6,), (2, 4), 5)
    objective = InformedClassifier(head, decoder, (3.0, 0.25)).double()
    h, image = random(5, 6), random(5, 2, 4, seed=1)
    assessment, gradient = assessed(objective, h, Told(Y, image=image))
    up, down = decoder.layers[1], decoder.layers[3]
    h = h.requires_grad_()
    rebuilt = (torch.relu(h @ up.weight.T + up.bias) @ down.weight.T + down.bias).view(5, 2, 4)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        expected = expected + 3.0 * (rebuilt[i] - image[i]).square().sum() / 8
        expected = expected - 0.25 * torch.log_softmax(head(h[i]), -1)[Y[i]]
    torch.testing.assert_close(assessment.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, h)[0])
    torch.testing.assert_close(assessment.scores, head(h))


def test_the_image_decoder_by_hand():
    decoder = ImageDecoder(3, (2, 4, 6), 5).double()
    first, norm, _, last = decoder.layers
    assert (first.in_channels, first.out_channels, last.out_channels) == (3, 5, 2)
    h = random(4, 3, 2, 3)
    wide = F.interpolate(h, (4, 6), mode="bilinear", align_corners=True)
    hidden = F.conv2d(wide, first.weight, padding=1)
    mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)
    hidden = (hidden - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + norm.eps).sqrt()
    expected = F.conv2d(torch.relu(hidden), last.weight, last.bias, padding=1)
    torch.testing.assert_close(decoder(h), expected)


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [((6,), (4,)), ((6,), (2, 4, 4)), ((5, 6), (2, 4, 4)), ((3, 2, 2), (4,))],
)
def test_any_output_reconstructs_any_input(shape, input_shape):
    decoder = DenseDecoder(shape, input_shape, 7)
    assert decoder(torch.randn(5, *shape)).shape == (5, *input_shape)


def test_supervised_contrast_by_hand():
    """The definition, sample by sample, in plain Python; label 1 is alone and counts nothing."""
    z = random(5, 3)
    unit = [[v / math.hypot(*row) for v in row] for row in z.tolist()]
    y, total = Y.tolist(), 0.0
    for i in range(5):
        to = {
            j: math.exp(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / 0.5)
            for j in range(5)
            if j != i
        }
        friends = [j for j in to if y[j] == y[i]]
        total -= sum(math.log(to[j] / sum(to.values())) for j in friends) / max(1, len(friends))
    assert float(supervised_contrast(z, Y, 0.5)) == pytest.approx(total)
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, Y, 0.5), z.requires_grad_())


def test_with_contrast_the_head_only_watches():
    head, projection = nn.Linear(6, 3), nn.Linear(6, 4)
    objective = InformedClassifier(head, None, (0.0, 0.5), projection=projection).double()
    h = random(5, 6)
    assessment, gradient = assessed(objective, h, Told(Y))
    expected = 0.5 * supervised_contrast(projection(h.requires_grad_()), Y, 0.07)
    torch.testing.assert_close(assessment.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, h)[0])
    learned = torch.autograd.grad(objective(h, Told(Y)).loss, head.weight)
    wanted = torch.autograd.grad(F.cross_entropy(head(h), Y, reduction="sum"), head.weight)
    torch.testing.assert_close(learned, wanted)


def test_contrast_compares_samples():
    rule = InfoPro(contrast="supcon")
    assert rule.batch_coupled and not InfoPro().batch_coupled
    with pytest.raises(UserError, match="supcon compares samples that have one label each"):
        engine_of(rule, shape=(5, 4), target_shape=(5,))


def test_weights_go_linearly_from_block_1_to_the_last_but_one():
    rule = InfoPro(lambda1=(5.0, 1.0), lambda2=(0.0, 1.0))
    assert [rule.weights(k, 6) for k in range(1, 6)] == [
        (5, 0),
        (4, 0.25),
        (3, 0.5),
        (2, 0.75),
        (1, 1),
    ]
    assert rule.weights(1, 2) == (5, 0)  # one block before the last: the first numbers


@pytest.mark.parametrize("conv", [False, True])
def test_without_reconstruction_it_is_local(conv):
    options = {"model": convnet(0), **IMAGES} if conv else {}
    rule = InfoPro(lambda1=(0.0, 0.0), lambda2=(1.0, 1.0))
    states = []
    for one in (engine_of(rule, **options), engine_of(Local(), **options)):
        train(one, range(4), shards_of(shape=options.get("shape", (4,))))
        states.append(model_state(one))
    assert_same_bits(*states)


def test_every_block_gets_the_network_s_input():
    """Block 2's gradient by hand; the input goes along through block 1."""
    engine = engine_of(InfoPro(lambda1=(2.0, 0.5)))
    x, y = batch_of(0)
    first, second, _ = engine.blocks
    h = second.chain(first.chain(x).detach())
    head, decoder = second.objective.head, second.objective.decoder
    loss = F.cross_entropy(head(h), y) + 0.5 * F.mse_loss(decoder(h), x)
    parameters = dict(second.chain.named_parameters())
    expected = dict(
        zip(
            map(second.chain.original_name, parameters),
            torch.autograd.grad(loss, list(parameters.values())),
            strict=True,
        )
    )
    got = gradients_of(engine, 0, shards_of())[2]
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient)
    decoders = [b.objective.decoder for b in engine.blocks[:2]]
    assert all(d.layers[3].out_features == 4 for d in decoders)


def test_shards_change_nothing_but_rounding():
    states = []
    for shards in (1, 4):
        engine = engine_of(InfoPro(), shards=shards)
        train(engine, range(3), shards_of(shards))
        states.append(model_state(engine))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-9, atol=1e-11)


def test_tokens_are_refused_before_anything_starts():
    engine = engine_of(Local(), mlp(0), shape=(5, 4), target_shape=(5,))
    program = replace(engine.program, rule=InfoPro(), input_shape=(5,))
    tokens = torch.zeros(4, 5, dtype=torch.long)
    with pytest.raises(UserError, match="reconstructs inputs that are numbers, not tokens"):
        check_program(program, [block.units for block in engine.blocks], tokens)


@pytest.mark.parametrize("contrast", ["ce", "supcon"])
@pytest.mark.parametrize("conv", [False, True])
def test_state_goes_on(conv, contrast):
    def make(seed: int):
        options = {"model": convnet(seed), **IMAGES} if conv else {"model": mlp(seed)}
        return engine_of(InfoPro(contrast=contrast), seed=seed, **options)

    assert_goes_on(make, shards_of(shape=(2, 4, 4) if conv else (4,)))
