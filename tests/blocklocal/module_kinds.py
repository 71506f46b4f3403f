"""Kinds of user module: small networks of 8 features and 4 classes with something special."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Maker = Callable[[], nn.Sequential]
KINDS: dict[str, Maker] = {}
"""By name; each ends with the bits of a plain loop."""
REFUSED: dict[str, tuple[Maker, str]] = {}
"""By name, with what the sentence says."""


def kind(make: Maker) -> Maker:
    """Note a kind that trains as in a plain loop."""
    KINDS[make.__name__] = make
    return make


def refused(said: str) -> Callable[[Maker], Maker]:
    """Note a kind that is refused before the first step."""

    def note(make: Maker) -> Maker:
        REFUSED[make.__name__] = make, said
        return make

    return note


def net(*middle: nn.Module, width: int = 8) -> nn.Sequential:
    """A network with some units in its middle; block 2 begins with unit 2."""
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), *middle, nn.ReLU(), nn.Linear(width, 4))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@kind
def plain():
    return net(nn.Linear(8, 8))


@kind
def hook_that_masks_rows_of_a_gradient():
    model = net(nn.Linear(8, 8))
    mask = torch.ones(8, 1)
    mask[:3] = 0
    model[2].weight.register_hook(lambda g: g * mask)
    model[0].weight.register_hook(lambda g: g * mask)
    return model


@kind
def hook_that_clamps_a_gradient():
    model = net(nn.Linear(8, 8))
    model[2].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    return model


@kind
def hook_that_changes_a_gradient_in_place():
    model = net(nn.Linear(8, 8))

    def halve(gradient: Tensor) -> None:
        gradient.mul_(0.5)

    model[0].bias.register_hook(halve)
    return model


@kind
def hook_after_accumulation():
    model = net(nn.Linear(8, 8))

    def halve(parameter: Tensor) -> None:
        parameter.grad = parameter.grad.sign() * 0.01

    model[2].weight.register_post_accumulate_grad_hook(halve)
    return model


@kind
def hook_that_takes_the_gradient():
    model = net(nn.Linear(8, 8))

    def take(parameter: Tensor) -> None:
        parameter.grad = None

    model[2].weight.register_post_accumulate_grad_hook(take)
    return model


@kind
def forward_hook_on_a_unit():
    model = net(nn.Linear(8, 8))
    model[2].register_forward_hook(lambda m, a, out: out * 2)
    model[0].register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    return model


@kind
def full_backward_hook_on_a_unit():
    model = net(nn.Linear(8, 8))
    model[2].register_full_backward_hook(lambda m, gi, go: tuple(g * 3 for g in gi))
    return model


@kind
def backward_hook_on_a_nested_sequential():
    inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    inner.register_full_backward_hook(lambda m, gi, go: tuple(g * 0.5 for g in gi))
    return net(inner)


@kind
def parameter_of_a_nested_sequential():
    inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    inner.register_buffer("steps", torch.zeros(3))
    return net(inner)


class Averaging(nn.Module):
    """Centres by a moving average; a buffer, persistent or not, holds it."""

    def __init__(self, persistent: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=dtype), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean * 0.9 + 0.1 * x.detach().mean(0).to(self.mean.dtype)
        return x - self.mean.to(x.dtype)


@kind
def persistent_buffer():
    return net(Averaging(True))


@kind
def hidden_buffer():
    return net(Averaging(False))


@kind
def double_buffer():
    return net(Averaging(True, torch.float64))


@kind
def random_hidden_buffer():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("random", torch.randn(8, 8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.random

    return net(Features())


@kind
def complex_buffer():
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            turns = torch.polar(torch.ones(4), torch.arange(4.0))
            self.register_buffer("turns", turns)

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.reshape(-1, 4, 2))
            return torch.view_as_real(pairs * self.turns).flatten(1)

    return net(nn.Linear(8, 8), Rotary())


@kind
def complex_parameter():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64) / 3)

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight).abs()

    return net(Complex())


@kind
def complex_numbers_at_the_cut():
    to_complex = Apply(lambda x: torch.complex(x, x * 0.5))
    model = net(Apply(lambda z: z.real * z.imag))
    return nn.Sequential(model[0], to_complex, *list(model)[2:])


@kind
def integers_at_the_cut():
    model = net(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(24, 8))
    return nn.Sequential(
        model[0], Apply(lambda x: (x.abs() * 4).long().clamp(max=4)), *list(model)[2:]
    )


@kind
def integer_and_boolean_buffers():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.int32))
            self.register_buffer("seen", torch.zeros(8, dtype=torch.bool))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.count += 1
                self.seen |= (x > 0.5).any(0)
            return x * (1 + self.seen) / self.count.clamp(min=1)

    return net(Counts())


@kind
def double():
    return net(nn.Linear(8, 8)).double()


@kind
def bfloat16():
    return net(nn.Linear(8, 8)).bfloat16()


@kind
def half():
    return net(nn.Linear(8, 8)).half()


@kind
def mixed_types():
    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def forward(self, x: Tensor) -> Tensor:
            return x.to(self.dtype)

    low, wide = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8).double()
    back = Cast(torch.float32)
    return nn.Sequential(
        nn.Linear(8, 8), Cast(torch.float64), wide, Cast(torch.bfloat16), low, back, nn.Linear(8, 4)
    )


@kind
def frozen_batch_norm():
    model = net(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[2].running_mean += 0.3
    model[2].eval()
    return model


@kind
def batch_norm_frozen_by_its_own_train():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    model = net(Frozen(8))
    model[2].running_var *= 2
    return model.train()


@kind
def whole_model_in_evaluation_mode():
    return net(nn.BatchNorm1d(8)).eval()


@kind
def dropout_of_zero_and_dropout_in_evaluation_mode():
    model = net(nn.Dropout(0.0), nn.Linear(8, 8), nn.Dropout(0.5))
    model[4].eval()
    return model


@kind
def train_only_branch():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if self.training else x

    return net(Branch())


@kind
def weight_norm():
    return net(parametrizations.weight_norm(nn.Linear(8, 8)))


@kind
def spectral_norm():
    return net(parametrizations.spectral_norm(nn.Linear(8, 8)))


@kind
def orthogonal():
    return net(parametrizations.orthogonal(nn.Linear(8, 8)))


@kind
def old_spectral_norm():
    return net(nn.utils.spectral_norm(nn.Linear(8, 8)))


class Extra(nn.Module):
    """Counts its calls, and scales by them, in extra state."""

    def __init__(self, wrap: Callable[[int], Any], unwrap: Callable[[Any], int]) -> None:
        super().__init__()
        self.calls, self.wrap, self.unwrap = 0, wrap, unwrap

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x * (1 + self.calls / 8)

    def get_extra_state(self) -> Any:
        return self.wrap(self.calls)

    def set_extra_state(self, state: Any) -> None:
        self.calls = self.unwrap(state)


@kind
def extra_state_of_plain_values():
    return net(Extra(lambda n: {"calls": n, "of": ["x", None]}, lambda s: s["calls"]))


@kind
def extra_state_of_tensors():
    return net(Extra(lambda n: {"calls": [torch.tensor(n)]}, lambda s: int(s["calls"][0])))


@kind
def tied_within_a_block():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return net(first, second)


@kind
def one_module_twice():
    layer = nn.Linear(8, 8)
    return net(layer, nn.Tanh(), layer)


@kind
def frozen_parameters():
    model = net(nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    return model


@kind
def frozen_first_block():
    model = net(nn.Linear(8, 8))
    model[0].requires_grad_(False)
    return model


@kind
def in_place():
    return nn.Sequential(
        nn.Linear(8, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 4),
    )


@kind
def checkpointed():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    return net(Checkpointed())


@kind
def output_that_is_not_contiguous():
    model = net(Apply(lambda x: x.t().reshape(-1, 8)), nn.Linear(8, 8))
    return nn.Sequential(nn.Linear(8, 8), Apply(lambda x: x.t().contiguous().t()), *list(model)[2:])


@kind
def expanded_output():
    model = net(nn.Flatten(), nn.Linear(32, 8))
    return nn.Sequential(
        nn.Linear(8, 8), Apply(lambda x: x.unsqueeze(2).expand(-1, -1, 4)), *list(model)[2:]
    )


@kind
def parameter_that_is_not_contiguous():
    model = net(nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = nn.Parameter(torch.randn(8, 8).t() / 3)
    model[3].weight = nn.Parameter(torch.randn(8, 16)[:, ::2] / 3)
    return model


@kind
def channels_last():
    model = nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    return model.to(memory_format=torch.channels_last)


@kind
def lazy_layers_that_have_run():
    model = net(nn.LazyLinear(8), nn.LazyBatchNorm1d())
    with torch.no_grad():
        model.eval()(torch.randn(4, 8))
    return model.train()


@kind
def halves_of_one_memory():
    model = net(nn.Linear(8, 8), nn.Linear(8, 8))
    both = torch.randn(8, 16) / 3
    model[2].weight, model[3].weight = nn.Parameter(both[:, :8]), nn.Parameter(both[:, 8:])
    return model


@kind
def lambdas_and_local_classes():
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.function = nn.Parameter(torch.ones(8)), lambda x: x.sin()

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x) * self.scale

    return net(Local())


@kind
def closure_over_a_list():
    seen: list[int] = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x * 2

    return net(Noting())


@kind
def slots():
    class Slotted(nn.Linear):
        __slots__ = ("scale",)

        def __init__(self) -> None:
            super().__init__(8, 8)
            object.__setattr__(self, "scale", 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    return net(Slotted())


@kind
def custom_autograd_function():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.round()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * (x.abs() < 1)

    return net(Apply(Rounded.apply), nn.Linear(8, 8))


@kind
def lists_and_dicts_of_parameters():
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.list = nn.ParameterList([torch.randn(8) for _ in range(3)])
            self.dict = nn.ParameterDict({"model": torch.randn(8), "a b": torch.randn(8)})

        def forward(self, x: Tensor) -> Tensor:
            return x * self.list[0] + self.list[2] * self.dict["model"] - self.dict["a b"]

    return net(Many())


@kind
def odd_names():
    return nn.Sequential(
        OrderedDict(
            model=nn.Linear(8, 8),
            hidden=nn.Tanh(),
            optimizer=nn.Linear(8, 8),
            units=nn.Sequential(OrderedDict({"0": nn.Linear(8, 8), "ü-1": nn.ReLU()})),
            sent=nn.Linear(8, 4),
        )
    )


@kind
def parameters_of_no_size_and_unused_ones():
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none, self.unused = nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.ones(2))
            self.register_parameter("absent", None)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.none.sum()

    return net(Empty())


@kind
def attributes_on_parameters():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.weight.factor

    layer = Scaled(8, 8)
    layer.weight.factor = 1.5
    return net(layer)


@kind
def tensor_that_is_not_registered():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.linspace(0.5, 2, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    return net(Plain())


@kind
def attention_and_layer_norm():
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.Linear(4, 8),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        nn.LayerNorm(8),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@kind
def gradients_of_nothing():
    """A unit that detaches: what is before it does not learn."""
    return net(nn.Linear(8, 8), Apply(lambda x: x.detach()), nn.Linear(8, 8))


@kind
def stops_learning_by_grad_mode():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.inner(x)
            return x + y

    return net(Fixed())


@refused("which is in another block")
def tied_across_blocks_behind_the_back():
    model = net(nn.Linear(8, 8))

    class Reads(nn.Module):
        def __init__(self, other: nn.Linear) -> None:
            super().__init__()
            self.other = [other]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.other[0].weight)

    return nn.Sequential(*list(model)[:3], Reads(model[0]), *list(model)[3:])


@refused("is the same tensor as 0.weight in block 1")
def tied_across_blocks():
    model = net(nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


@refused("different tensors in one memory")
def views_of_one_memory():
    model = net(nn.Linear(8, 8))
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


@refused("is an expanded tensor")
def expanded_buffer():
    model = net(nn.Linear(8, 8))
    model[2].register_buffer("ones", torch.ones(1).expand(8))
    return model


@refused("compiled by torch.jit")
def script_module():
    return net(torch.jit.script(nn.Linear(8, 8)))


@refused("compiled by torch.compile")
def compiled_module():
    layer = nn.Linear(8, 8)
    layer.compile()
    return net(layer)


@refused("compiled by torch.compile")
def wrapped_compiled_module():
    return net(torch.compile(nn.Linear(8, 8)))


@refused("has lazy parameters")
def lazy():
    return net(nn.LazyLinear(8))


@refused("use_reentrant=False")
def checkpointed_reentrant():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=True)

    return net(Checkpointed())


@refused("calls is 1 after a step and was 0, which no checkpoint keeps")
def python_state():
    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x / (1 + self.calls)

    return net(Counting())


@refused("ends otherwise when a step is done again")
def tensor_state_that_is_not_registered():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.zeros(8)

        def forward(self, x: Tensor) -> Tensor:
            self.mean = self.mean * 0.9 + 0.1 * x.detach().mean(0)
            return x - self.mean

    return net(Mean())


@refused("ends otherwise when a step is done again")
def numbers_of_numpy():
    return net(Apply(lambda x: x * float(np.random.rand())))


@refused("ends otherwise when a step is done again")
def numbers_of_python():
    return net(Apply(lambda x: x * random.random()))


@refused("returns a set, which a checkpoint cannot hold")
def extra_state_of_sets():
    return net(Extra(lambda n: {n}, lambda s: min(s)))


@refused("does not pass gradients on in proportion")
def backward_hook_that_clips():
    model = net(nn.Linear(8, 8))
    model[2].register_full_backward_hook(lambda m, gi, go: tuple(g.clamp(-1e-2, 1e-2) for g in gi))
    return model


@refused("loses the type Own of 2.weight")
def parameter_of_a_type_of_its_own():
    class Own(nn.Parameter):
        pass

    model = net(nn.Linear(8, 8))
    model[2].weight = Own(model[2].weight.data)
    return model


@refused("comes, goes or changes its shape")
def buffer_that_comes_with_the_first_pass():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", None)

        def forward(self, x: Tensor) -> Tensor:
            self.mean = x.detach().mean(0)
            return x - self.mean

    return net(Late())


@refused("the network itself has hooks")
def backward_hook_on_the_network():
    model = net(nn.Linear(8, 8))
    model.register_full_backward_hook(lambda m, gi, go: None)
    return model


@refused("is of type torch.complex128, which safetensors files do not have")
def complex128():
    model = net(nn.Linear(8, 8))
    model[2].register_buffer("turns", torch.ones(3, dtype=torch.complex128))
    return model


@refused("named like auxiliary networks")
def named_like_auxiliary_networks():
    return nn.Sequential(OrderedDict(one=nn.Linear(8, 8), two=nn.ReLU(), auxiliary=nn.Linear(8, 4)))


@refused("was made under torch.inference_mode")
def made_in_inference_mode():
    with torch.inference_mode():
        return net(nn.Linear(8, 8))


@refused("cannot be sent to another process")
def lock():
    import threading

    model = net(nn.Linear(8, 8))
    model[2].lock = threading.Lock()
    return model


@refused("buffer 2.scale has a gradient")
def buffer_with_a_gradient():
    model = net(nn.Linear(8, 8))
    model[2].register_buffer("scale", torch.ones(8, requires_grad=True))
    return model


@refused("fails")
def sparse_gradients():
    model = net(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(24, 8))
    return nn.Sequential(
        model[0], Apply(lambda x: (x.abs() * 4).long().clamp(max=4)), *list(model)[2:]
    )
