"""The transformer on tokens sees what it may see, and has the sizes one gets by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from learning.errors import UserError
from learning.networks import CustomSettings, GPTSettings, MLPSettings, build_network
from learning.networks.attention import Rotary
from learning.units import split, units_of
from tests.learning.helpers import assert_same_bits

T, V = 7, 5
TINY = GPTSettings(width=8, depth=2, heads=2, mlp_ratio=2)


def make(context: int = T, seed: int = 0, **changes) -> nn.Sequential:
    settings = GPTSettings.model_validate({**TINY.model_dump(), **changes})
    model = build_network(settings, (context,), V, seed, tokens=True)
    assert isinstance(model, nn.Sequential)
    return model


def vivid(model: nn.Sequential) -> nn.Sequential:
    """The same network in float64 with large weights: all dependencies show."""
    for parameter in model.double().eval().parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(1))
    return model


def rows(n: int = 3, context: int = T) -> Tensor:
    return torch.randint(V, (n, context), generator=torch.Generator().manual_seed(2))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_by_hand(positions, tied):
    model = make(positions=positions, tied=tied)
    c, hidden = 8, 16
    block = 2 * c + 3 * c * c + c * c + 2 * c * hidden
    learned = T * c if positions == "learned" else 0
    assert count(model) == (1 if tied else 2) * V * c + learned + 2 * block + c
    assert [unit.name for unit in units_of(model)] == ["embed", "block1", "block2", "head"]
    assert model.state_dict()["head.unembed.weight"].shape == (V, c)
    h = rows()
    for unit, shape in zip(units_of(model), [(T, c), (T, c), (T, c), (T, V)], strict=True):
        h = unit.module(h)
        assert h.shape == (3, *shape)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("kernel", [SDPBackend.MATH, None])
def test_no_token_sees_the_ones_after_it(positions, kernel):
    model = vivid(make(positions=positions))
    tokens = rows()
    with sdpa_kernel(kernel or [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]), torch.no_grad():
        before = model(tokens)
        for t in range(T):
            other = tokens.clone()
            other[:, t] = (other[:, t] + 1) % V
            changed = (model(other) - before).abs().amax(dim=(0, 2)) > 1e-9
            assert changed.tolist() == [False] * t + [True] * (T - t)


def test_without_causality_every_token_sees_all():
    model, tokens = vivid(make(causal=False)), rows()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % V
    with torch.no_grad():
        assert ((model(other) - model(tokens)).abs().amax(dim=(0, 2)) > 1e-9).all()


def test_rotary_by_hand():
    x = torch.tensor([[[[3.0, 5.0, 7.0, 11.0], [3.0, 5.0, 7.0, 11.0]]]])  # two tokens of size 4
    turned = Rotary(context=2, size=4)(x)
    assert torch.equal(turned[0, 0, 0], x[0, 0, 0])  # position 0 stays
    # Pairs (0, 2) and (1, 3), as complex numbers, turn by 1 and 1 / 100 a position.
    pairs = torch.complex(torch.tensor([3.0, 5.0]), torch.tensor([7.0, 11.0]))
    expected = pairs * torch.polar(torch.ones(2), torch.tensor([1.0, 0.01]))
    torch.testing.assert_close(turned[0, 0, 1], torch.cat((expected.real, expected.imag)))


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = Rotary(context=12, size=6)
    q, k = torch.randn(1, 1, 1, 6).expand(1, 1, 12, 6), torch.randn(1, 1, 1, 6).expand(1, 1, 12, 6)
    scores = (rotary(q) @ rotary(k).mT)[0, 0]
    for distance in range(-11, 12):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 0.01  # and they do depend on it


def test_a_rotary_network_sees_no_absolute_positions():
    model, tokens = vivid(make(context=12)), rows(context=4)
    with torch.no_grad():
        first = model(tokens)
        for block in model[1:-1]:
            block.attention.rotary = _Moved(block.attention.rotary, 5)
        moved = model(tokens)
    assert not torch.equal(first, moved)
    torch.testing.assert_close(first, moved, rtol=1e-4, atol=1e-5)


class _Moved(nn.Module):
    """Positions that begin at `start`."""

    def __init__(self, rotary: Rotary, start: int) -> None:
        super().__init__()
        self.rotary, self.start = rotary, start

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros(*x.shape[:-2], self.start, x.shape[-1], dtype=x.dtype)
        return self.rotary(torch.cat((before, x), dim=-2))[..., self.start :, :]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_shorter_rows_are_read_too(positions):
    model = vivid(make(positions=positions))
    with torch.no_grad():
        torch.testing.assert_close(model(rows()[:, :3]), model(rows())[:, :3])


@pytest.mark.parametrize("changes", [{}, {"positions": "learned", "causal": False}])
def test_second_derivatives(changes):
    model = make(context=3, depth=1, **changes).double()
    block = model[1]
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(block, (x,))
        # The norm of a gradient reaches every weight of the block, as reconciliation needs it.
        (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_weights_are_drawn_as_those_of_gpt_2():
    model = make(width=256, heads=4, depth=8, mlp_ratio=4, positions="learned")
    state = model.state_dict()
    for name in ("block3.attention.qkv.weight", "block3.mlp.up.weight", "head.unembed.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("embed.tokens.weight", "embed.positions"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("block3.attention.out.weight", "block3.mlp.down.weight"):
        assert state[name].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    with torch.no_grad():  # an untrained network knows nothing
        scores = model(rows(8))
    loss = nn.functional.cross_entropy(scores.flatten(0, 1), rows(8).flatten())
    assert loss.item() == pytest.approx(torch.tensor(V).log().item(), abs=0.1)


def test_weights_depend_on_the_seed_alone():
    assert_same_bits(make(seed=4).state_dict(), make(seed=4).state_dict())
    assert not torch.equal(make(seed=4)[0].tokens.weight, make(seed=5)[0].tokens.weight)
    for positions in ("rotary", "learned"):
        names = make(positions=positions).state_dict()
        assert not any("rotary" in name for name in names)  # tables are no weights


def test_dropout_works_in_training_only():
    model = vivid(make(dropout=0.5))
    tokens = rows()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_tied_embeddings_are_one_parameter_and_stay_one():
    model = make(tied=True)
    assert model[0].tokens.weight is model[-1].unembed.weight
    copied = copy.deepcopy(model).double()
    assert copied[0].tokens.weight is copied[-1].unembed.weight
    copied.load_state_dict(model.state_dict())
    assert_same_bits(copied.float().state_dict(), model.state_dict())


def test_tied_embeddings_cannot_be_cut():
    with pytest.raises(
        UserError,
        match=r"head\.unembed\.weight in block 2 is the same tensor as embed\.tokens\.weight in "
        r"block 1: no boundary keeps the first and the last unit together, so use blocks\.count = "
        r"1, or do not share it \(gpt: network\.tied = false\)",
    ):
        split(units_of(make(tied=True)), ["block2"])
    assert len(split(units_of(make(tied=True)), [])) == 1
    assert len(split(units_of(make()), ["block1", "block2", "head"])) == 4


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"width = 9 is not a multiple of network.heads = 2: ch"):
        make(width=9)
    with pytest.raises(UserError, match=r"heads = 3 is odd, and network.positions = rotary turns"):
        make(width=6)
    assert make(width=6, positions="learned")(rows()).shape == (3, T, V)
    with pytest.raises(UserError, match=r"rows of tokens \(T,\), not \(1, 8, 8\)"):
        TINY.build((1, 8, 8), V)


def test_numbers_and_tokens_are_not_mixed_up():
    with pytest.raises(UserError, match=r"gpt reads tokens, not numbers of shape \(64,\): use"):
        build_network(TINY, (64,), V, 0)
    with pytest.raises(UserError, match=r"mlp reads numbers, but .* are 7 tokens each: use netw"):
        build_network(MLPSettings(), (T,), V, 0, tokens=True)
    custom = CustomSettings(factory="tests.learning.helpers:make_custom")
    build_network(custom, (T,), V, 0, tokens=True)  # the user's own may read what it likes
