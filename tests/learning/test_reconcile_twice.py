"""Layers that reconciliation differentiates twice: attention can be, others are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.rules import Local, Reconciliation
from learning.units import split, units_of
from tests.learning.helpers import (
    assert_same_bits,
    batch_of,
    convnet,
    gradients_of,
    learner_settings,
    make_engine,
    parts_of,
    shards_of,
)
from tests.learning.reconciling import distance, errors


class Attention(nn.Module):
    """Self-attention over (B, 4), read as two tokens of width 2."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), 2, 2)
        if self.kind == "function":
            query = self.inner.out_proj(tokens)
            tokens = F.scaled_dot_product_attention(query, tokens, tokens)
        else:
            tokens, _ = self.inner(tokens, tokens, tokens, need_weights=self.kind == "weights")
        return tokens.flatten(1)


@pytest.mark.parametrize("attention", ["function", "module", "weights"])
def test_attention_is_differentiated_twice(attention):
    """The fused kernels cannot; the plain ones give the gradient of attention written out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Attention(attention), nn.Linear(4, 3))
    rule = Reconciliation(weight=0.5, warmup=0, distance="squared")
    x, y = batch_of(0)
    settings = learner_settings(batch=8)
    engine = make_engine(rule, model, ["1", "2"], x=x, settings=settings)
    check_program(engine.program, split(units_of(model), ["1", "2"]), x.float())
    (first, head1), (second, head2), _ = parts_of(engine)
    got = gradients_of(engine, 0, shards_of())[2]
    module = second.units[0].inner
    h1 = first(x).detach().requires_grad_()
    d = errors(head1(h1), y) @ head1.linear.weight
    tokens = h1.view(8, 2, 2)
    if attention == "function":
        q, k, v = module.out_proj(tokens), tokens, tokens
    else:
        q, k, v = (tokens @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, -1)
    mixed = torch.softmax(q @ k.transpose(1, 2) / 2**0.5, -1) @ v
    h2 = (mixed if attention == "function" else module.out_proj(mixed)).flatten(1)
    loss = F.cross_entropy(head2(h2), y, reduction="sum")
    (e,) = torch.autograd.grad(loss, h1, create_graph=True)
    total = (loss + 0.5 * distance(e, d, "squared")) / 8
    (expected,) = torch.autograd.grad(total, module.out_proj.weight)
    torch.testing.assert_close(got["1.inner.out_proj.weight"], expected)


class Once(torch.autograd.Function):
    """The identity, whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()


class OnceOnly(nn.Linear):
    """A linear layer behind `Once`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(Once.apply(input))


@pytest.mark.parametrize("bp_free", [False, True])
def test_a_layer_without_second_derivative_is_refused(bp_free):
    """Autograd alone would train on, without the penalty's gradient in part of the block."""
    model = nn.Sequential(OnceOnly(4, 4), nn.Linear(4, 4), OnceOnly(4, 4), nn.Linear(4, 3))
    blocks, x = split(units_of(model), ["1", "3"]), batch_of(0)[0].float()
    program = Program(
        Reconciliation(bp_free=bp_free), learner_settings(batch=8), ((4,), (4,), (3,)), 3
    )
    with pytest.raises(UserError) as caught:  # block 1 has no penalty
        check_program(program, blocks, x)
    assert str(caught.value) == (
        "rule.kind = reconcile differentiates block 2 twice, which fails (a custom autograd "
        "function is differentiable only once): use layers whose gradient is differentiable, or "
        "another rule"
    )
    check_program(replace(program, rule=Local()), blocks, x)


def test_the_check_leaves_the_network_as_it_is():
    blocks = split(units_of(convnet(0)), ["1", "2.1"])
    before = {n: t.clone() for b in blocks for u in b for n, t in _state(u).items()}
    shapes = ((4, 4, 4), (64,), (3,))
    program = Program(Reconciliation(), learner_settings(batch=8), shapes, 3)
    check_program(program, blocks, batch_of(0, shape=(2, 4, 4))[0].float())
    assert_same_bits({n: t for b in blocks for u in b for n, t in _state(u).items()}, before)
    assert not any(p.grad is not None for b in blocks for u in b for p in u.module.parameters())


def _state(unit) -> dict[str, Tensor]:
    return {f"{unit.name}.{n}": t for n, t in unit.module.state_dict().items()}
