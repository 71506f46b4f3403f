"""Profiles have the numbers one gets by hand and leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from learning.errors import UserError
from learning.units import Unit, units_of
from orchestrator.profile import (
    block_activation_bytes,
    measure_units,
    profile_units,
)
from tests.clock import Clock


def _convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 10),
    )


def test_sizes_by_hand() -> None:
    units = units_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5, bias=False)))
    sizes = measure_units(units, torch.randn(2, 4))
    assert [s.name for s in sizes] == ["0", "1", "2"]
    assert [s.parameters for s in sizes] == [4 * 3 + 3, 0, 15]
    assert [s.output_shape for s in sizes] == [(3,), (3,), (5,)]
    assert [s.output_bytes for s in sizes] == [2 * 3 * 4, 2 * 3 * 4, 2 * 5 * 4]
    # A linear layer keeps its input, a ReLU its output; weights do not count.
    assert [s.activation_bytes for s in sizes] == [2 * 4 * 4, 2 * 3 * 4, 2 * 3 * 4]


def test_a_block_keeps_a_tensor_between_two_units_once() -> None:
    units = units_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)))
    x = torch.randn(2, 4)
    assert block_activation_bytes([units], x) == [32 + 24]
    assert block_activation_bytes([units[:2], units[2:]], x) == [32 + 24, 24]


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return y * y.view(-1).view_as(y)


def test_storages_count_once_and_bytes_follow_the_dtype() -> None:
    units = [Unit("square", _Square()), Unit("cast", _Cast())]
    square, cast = measure_units(units, torch.ones(3, 2, dtype=torch.float64))
    assert (square.output_bytes, square.activation_bytes) == (48, 48)  # both factors: one storage
    assert (cast.output_bytes, cast.output_shape) == (3 * 2 * 2, (2,))


class _Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


def test_parameters_and_buffers_are_not_activations() -> None:
    (norm,) = measure_units(units_of(nn.Sequential(nn.BatchNorm1d(3))), torch.randn(8, 3))
    assert norm.parameters == 6
    # At least the input, at most that and a mean and an inverse deviation per channel (and a
    # reserve that is empty on CPU).
    assert 8 * 3 * 4 <= norm.activation_bytes <= 8 * 3 * 4 + 2 * 3 * 4


def test_nothing_is_changed() -> None:
    model = _convnet().eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 1, 6, 6)
    x_before, rng = x.clone(), torch.get_rng_state()
    units = units_of(model)
    profile_units(units, x, repeats=1)
    measure_units(units, x)
    block_activation_bytes([units], x)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, x_before) and not x.requires_grad
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m.training for m in model.modules())
    assert all(p.grad is not None and bool((p.grad == 7).all()) for p in model.parameters())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What units are measured by: it goes on where they sleep."""
    clock = Clock()
    monkeypatch.setattr("orchestrator.profile.time", clock)
    return clock


def test_times_are_attributed_to_unit_and_pass(clock: Clock) -> None:
    """To one that sleeps in the forward pass and twice as long in the backward pass."""

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clock.sleep(0.01)
            y = x * 2
            y.register_hook(lambda grad: clock.sleep(0.02))
            return y

    units = [Unit("fast", nn.Identity()), Unit("slow", Slow())]
    with torch.no_grad():  # the caller's mode must not matter
        fast, slow = profile_units(units, torch.zeros(2, 2))
    assert slow.forward_seconds == pytest.approx(0.01)
    assert slow.backward_seconds == pytest.approx(0.02)
    assert fast.forward_seconds == fast.backward_seconds == 0.0


def test_the_median_ignores_warm_up_and_outlier(clock: Clock) -> None:
    calls: list[bool] = []

    class Uneven(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.training)
            clock.sleep(9.0 if len(calls) in (1, 3) else 1.0)  # the warm-up and one of three runs
            return x

    (profile,) = profile_units([Unit("u", Uneven())], torch.zeros(2, 2), repeats=3)
    assert profile.forward_seconds == pytest.approx(1.0)
    assert len(calls) == 1 + 3 + 1 and all(calls)  # warm-up, three runs, one to count memory


def test_integer_input_has_no_gradient() -> None:
    units = units_of(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)))
    tokens = torch.randint(0, 10, (3, 5))
    embedding, linear = profile_units(units, tokens, repeats=1)
    assert (embedding.parameters, embedding.output_shape) == (40, (5, 4))
    assert embedding.activation_bytes == 3 * 5 * 8  # the indices
    assert linear.output_bytes == 3 * 5 * 2 * 4
    (identity,) = profile_units([Unit("i", nn.Identity())], tokens, repeats=1)
    assert identity.backward_seconds == 0.0


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("function", [profile_units, measure_units])
@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (nn.Linear(7, 2), ["'body.bad'", "(2, 3)", "mat1 and mat2 shapes cannot be multiplied"]),
        (_Tuple(), ["'body.bad'", "returns tuple", "must return one Tensor"]),
        (nn.Flatten(0), ["'body.bad'", "(2, 3) to (6,)", "keep the batch"]),
        (nn.LazyLinear(2), ["'body.bad'", "lazy", "run one batch"]),
    ],
)
def test_a_bad_unit_is_named(function, module: nn.Module, parts: list[str]) -> None:
    units = [Unit("stem", nn.Linear(4, 3)), Unit("body.bad", module)]
    with pytest.raises(UserError) as caught:
        function(units, torch.zeros(2, 4))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_no_repeats_is_refused() -> None:
    with pytest.raises(UserError, match="repeats = 0 is less than 1"):
        profile_units([Unit("i", nn.Identity())], torch.zeros(1, 1), repeats=0)


def test_tokens_are_profiled_like_numbers() -> None:
    units = units_of(nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 5)))
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    embedding, linear = measure_units(units, tokens)
    assert (embedding.parameters, embedding.output_shape) == (21, (4, 3))
    assert (embedding.output_bytes, embedding.activation_bytes) == (2 * 4 * 3 * 4, 2 * 4 * 8)
    assert (linear.output_shape, linear.activation_bytes) == ((4, 5), 2 * 4 * 3 * 4)
    assert block_activation_bytes([units], tokens) == [2 * 4 * 8 + 2 * 4 * 3 * 4]
    for profiled in profile_units(units, tokens, repeats=1):
        assert profiled.forward_seconds > 0 and profiled.backward_seconds > 0
