"""Compiled blocks: the units of a block as one function, and what that cannot be right for.

`inductor` translates the forward pass and its backward pass into fused kernels. `cuda-graphs`
records the kernels that the units start and later starts them all at once, which saves the time
between small kernels. Modules stay as they are: what is compiled is a function of them, so that
states keep the names of the original module and evaluation runs the units as they were written.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable

import torch
from torch import Tensor

from learning.credit import Credit, Reconcile
from learning.errors import UserError
from learning.settings import PrecisionSettings, UpdateSettings
from learning.units import Chain

Runner = Callable[[Tensor], Tensor]

CAPTURING = threading.Lock()
"""Held while a graph is recorded: CUDA then lets no thread allocate, or ask about an event."""


def make_runner(chain: Chain, settings: PrecisionSettings, index: int) -> Runner:
    """What runs a block's units in training: the chain itself, or a compiled function of it.

    Nothing is compiled before the first call.

    Args:
        chain: on its device, in its type and layout; changed in place by training from here on.
        settings: whose `compile` says how.
        index: number of the block, for errors.
    """
    if settings.compile == "inductor":
        return _Inductor(chain, index)
    if settings.compile == "cuda-graphs":
        return _Captured(chain, index)
    return chain


class _Inductor:
    """A chain compiled by torch.compile, for the one shape of a run's shards."""

    def __init__(self, chain: Chain, index: int) -> None:
        self._index = index
        self._run = torch.compile(own_code(chain), fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor) -> Tensor:
        return _translated(self._run, x, self._index)


def own_code(chain: Chain) -> Runner:
    """The chain's forward method with a code object of its own, for torch.compile.

    torch.compile keeps what it compiled by code object, up to a limit (8): the blocks of the
    sequential engine would share it.
    """
    forward = Chain.forward
    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__)
    return types.MethodType(own, chain)


def _translated(run: Runner, x: Tensor, index: int) -> Tensor:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        return run(x)
    except TorchDynamoException as error:
        raise UserError(
            f"block {index} cannot be compiled ({_first_lines(error)}): use units without control "
            "flow that depends on values, install what torch.compile needs (a C++ compiler, or "
            "Triton on a GPU), or set precision.compile = none"
        ) from error


def _first_lines(error: Exception) -> str:
    return " ".join(" ".join(str(error).splitlines()[:3]).split())


class _Captured:
    """A chain whose forward and backward pass are replayed as CUDA graphs.

    A graph reads and writes the same memory each time: the output of a shard and its gradients
    hold until the next shard. `check_compile` lets through only what needs them no longer.
    """

    def __init__(self, chain: Chain, index: int) -> None:
        self._chain, self._index = chain, index
        self._like: tuple[torch.Size, torch.dtype, bool] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            raise UserError(
                f"precision.compile = cuda-graphs runs on GPUs, but block {self._index} computes "
                "on the CPU: set engine.kind = ray with engine.resources.gpus above 0, or "
                "precision.compile = inductor"
            )
        like = (x.shape, x.dtype, x.requires_grad)
        if self._like is None:
            self._capture(x)
            self._like = like
        assert self._like == like, "a graph is of one shape"
        return self._chain(x)

    def _capture(self, x: Tensor) -> None:
        """Record both passes on an input like x; parameters and buffers keep their values."""
        sample = x.detach().clone().requires_grad_(x.requires_grad)
        kept = [(buffer, buffer.clone()) for buffer in self._chain.buffers()]
        kind = x.device.type
        autocast = torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,  # a cast kept from outside the graph would never be made anew
        )
        with CAPTURING, autocast:
            # In training mode the chain's forward method replays from here on.
            torch.cuda.make_graphed_callables(self._chain, (sample,), allow_unused_input=True)
        with torch.no_grad():
            for buffer, before in kept:  # warming up has counted into running statistics
                buffer.copy_(before)


def check_compile(
    settings: PrecisionSettings,
    update: UpdateSettings,
    credit: Credit,
    *,
    blocks: int,
    shards: int,
) -> None:
    """Check that a rule and its policies can be right with compiled blocks.

    Args:
        settings: whose `compile` is asked for.
        update: the policy between gradients and optimizer.
        credit: of the rule.
        blocks: K.
        shards: microbatches of a step.

    Raises:
        UserError: naming what is in the way, and the fix.
    """
    if settings.compile == "none":
        return
    asked, instead = f"precision.compile = {settings.compile}", "or precision.compile = none"
    losses = max(len(hop.reaching(k, blocks)) for hop in credit.hops() for k in _range(blocks))
    if isinstance(credit, Reconcile):
        reason = "differentiates a block once, and this rule does it twice: use another rule.kind"
    elif any(credit.delay(k, blocks) for k in _range(blocks)):
        reason = (
            "runs a block with its weights of the day, and this rule with those it keeps: use "
            "another rule.kind"
        )
    elif losses > 1:
        reason = (
            f"takes one gradient through a forward pass, and under this rule those of {losses} "
            "losses reach a block: use another rule.kind"
        )
    elif update.proximal is not None:
        reason = (
            f"runs a block's layers as one, and update.proximal = {update.proximal} looks at the "
            "input of each: use update.proximal = null"
        )
    elif update.fused:
        reason = (
            "forms all gradients of a block together, and update.fused = true is there to avoid "
            "that: use update.fused = false"
        )
    elif settings.compile == "cuda-graphs" and shards > 1:
        reason = (
            f"has memory for the activations of one shard, and training.shards = {shards}: use "
            "training.shards = 1"
        )
    elif settings.compile == "cuda-graphs" and len(credit.hops()) > 1:
        reason = "records one kind of step, and under this rule steps differ: use another rule.kind"
    else:
        return
    raise UserError(f"{asked} {reason} {instead}")


def check_units(chain: Chain, settings: PrecisionSettings, index: int, x: Tensor) -> None:
    """Check that the units of a block can be compiled, by tracing them on the CPU.

    Args:
        chain: a copy of the block's units, in training mode; its buffers change.
        settings: whose `compile` is asked for.
        index: number of the block, for errors.
        x: its input, (b, ...).

    Raises:
        UserError: for control flow that depends on values, and, with CUDA graphs, random numbers.
    """
    _translated(torch.compile(own_code(chain), backend="eager", fullgraph=True), x, index)
    if settings.compile == "cuda-graphs" and _draws(chain, x):
        raise UserError(
            f"precision.compile = cuda-graphs repeats what it recorded, but block {index} draws "
            "random numbers: set network.dropout = 0, or precision.compile = inductor or none"
        )


@torch.no_grad()
def _draws(chain: Chain, x: Tensor) -> bool:
    """Whether the output depends on the state of the random generator."""
    outputs = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if x.is_floating_point():  # zeros stay zeros whatever is dropped
            x = torch.randn(x.shape).to(x.dtype)
        for seed in (1, 2):
            torch.default_generator.manual_seed(seed)
            outputs.append(chain(x))
    return not torch.equal(*outputs)


def _range(blocks: int) -> range:
    return range(1, blocks + 1)
