"""Buffers over the shards of a step: each starts from the step's beginning; means at its end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learning.policies.buffers import ShardBuffers
from learning.rules import Backprop, Local
from learning.settings import SGDSettings
from tests.learning.helpers import (
    assert_same_bits,
    batch_of,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    shards_of,
    train,
)


class Odd(nn.Module):
    """Buffers of all kinds, written in place or put in anew."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (
            ("mean", torch.tensor([0.1, 0.7])),
            ("last", torch.zeros(2)),
            ("mask", torch.tensor([0.1, -torch.inf, torch.inf, 0.3])),
            ("count", torch.tensor(3)),
            ("ready", torch.tensor(False)),
            ("table", torch.arange(4)),
        ):
            self.register_buffer(name, value)
        self.also = nn.Module()
        self.also.register_buffer("shared", self.mean)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.ready  # every shard starts where the step does
        self.mean.mul_(0.9).add_(0.1 * x)
        self.last = x * 2
        self.count += len(x)
        self.ready.fill_(True)
        return x + self.mask[0]


SHARDS = [torch.tensor([1.0, 1e8]), torch.tensor([0.3, -1e8]), torch.tensor([0.2, 0.11])]


def after(own: list[list[int]]) -> dict[str, Tensor]:
    """The buffers after a step whose shards were run by several modules."""
    lanes = [Odd() for _ in own]
    buffers = [ShardBuffers("b", lane, 3) for lane in lanes]
    for lane, buffer, shards in zip(lanes, buffers, own, strict=True):
        for shard in shards:
            with buffer.shard(shard):
                lane(SHARDS[shard])
    if len(own) == 1:
        buffers[0].update()
    else:
        partials = [buffer.partial() for buffer in buffers]
        for buffer in buffers:
            buffer.update(partials[::-1])
    states = [{n: b.clone() for n, b in lane.named_buffers()} for lane in lanes]
    for state in states[1:]:
        assert_same_bits(state, states[0])
    assert all(lane.also.shared is lane.mean for lane in lanes)
    return states[0]


@pytest.mark.parametrize("own", [[[0, 1, 2]], [[0, 1], [2]], [[1], [0, 2]], [[2], [0], [1], []]])
def test_what_shards_make_of_buffers_comes_together(own):
    start, state = Odd(), after(own)
    ends = [0.9 * start.mean + 0.1 * x for x in SHARDS]
    assert torch.equal(state["mean"], ((ends[0] + ends[1]) + ends[2]) / 3)
    x = [2 * x for x in SHARDS]
    assert torch.equal(state["last"], ((x[0] + x[1]) + x[2]) / 3)
    assert state["count"] == 3 + 3 * 2 and state["ready"]
    for name in ("mask", "table"):  # to the bit, though 0.1 + 0.1 + 0.1 is not 3 * 0.1
        assert torch.equal(state[name], getattr(start, name))


def test_what_did_not_change_does_not_travel():
    module = Odd()
    buffers = ShardBuffers("b", module, 3)
    with buffers.shard(0):
        module(SHARDS[0])
    sent = {name.rsplit(".", 1)[1] for name in buffers.partial()}
    assert sent == {"spans", "0", "1", "3", "4"}
    module.fixed_buffers = ("mean",)
    module.also.fixed_buffers = ("shared",)
    buffers = ShardBuffers("b", module, 3)
    with buffers.shard(0):
        module(SHARDS[0])
    assert len(buffers.partial()) == 1 + 3
    assert not torch.equal(module.mean, Odd().mean)  # left to the module


def test_one_shard_is_left_to_the_module():
    module = nn.BatchNorm1d(2)
    buffers = ShardBuffers("b", module, 1)
    mean = module.running_mean
    with buffers.shard(0):
        module(torch.randn(4, 2))
        assert module.running_mean is mean
    assert buffers.partial() == {}
    before = mean.clone()
    buffers.update()
    assert torch.equal(mean, before) and module.num_batches_tracked == 1


def test_a_pass_that_fails_leaves_the_buffers_alone():
    module = Odd()
    buffers = ShardBuffers("b", module, 2)
    before = dict(module.named_buffers())
    with pytest.raises(RuntimeError), buffers.shard(0):
        module(torch.ones(5))
    assert all(b is before[n] for n, b in module.named_buffers())
    assert_same_bits(before, dict(Odd().named_buffers()))
    buffers.update()
    assert_same_bits(before, dict(Odd().named_buffers()))


@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_batch_norm_averages_the_means_of_the_shards(momentum):
    """One moving average a step, whatever the shards; two forwards come before any backward."""
    norm = nn.BatchNorm1d(2, momentum=momentum).double()
    buffers = ShardBuffers("b", norm, 3)
    mean, var = torch.zeros(2).double(), torch.ones(2).double()
    for step in range(4):
        shards = batch_of(step, batch=12, shape=(2,))[0].chunk(3)
        outputs = []
        for i, x in enumerate(shards):
            with buffers.shard(i):
                outputs.append(norm(x.requires_grad_()).square().sum())
        for output in outputs:
            output.backward()
        buffers.update()
        mean = (1 - momentum) * mean + momentum * sum(x.mean(0) for x in shards) / 3
        var = (1 - momentum) * var + momentum * sum(x.var(0) for x in shards) / 3
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 12


@pytest.mark.parametrize("rule", [Backprop(), Local()])
def test_blocks_infer_with_what_the_update_made(rule):
    """Block 1 sees the data: its statistics can be computed without it."""
    settings = learner_settings(batch=8, shards=4, optimizer=SGDSettings(lr=0.0))
    engine = make_engine(rule, mlp(0, norm=True), ["1.0"], x=batch_of(0)[0], settings=settings)
    layer, mean = engine.blocks[0].chain.units[0], torch.zeros(6).double()
    for step in range(3):
        train(engine, range(step, step + 1), shards_of(4))
        with torch.no_grad():
            mean = 0.9 * mean + 0.1 * layer(batch_of(step)[0]).mean(0)
    state = model_state(engine)
    torch.testing.assert_close(state["0.1.running_mean"], mean)
    assert state["0.1.num_batches_tracked"] == 12
    x, y = batch_of(9)
    got = engine.evaluate(2, "test", iter([(x, y)]))["block2"]["loss"]
    whole = mlp(0, norm=True).double().eval()
    whole.load_state_dict(state)
    assert got == pytest.approx(nn.functional.cross_entropy(whole(x), y).item(), rel=1e-12)
