"""The first steps of training, tried on copies that went the way to an actor and to a file.

A user's module may do anything. What matters is whether the same numbers come out in every process
and after every resume, and that shows by trying: a copy trains for some steps; another one goes on
from its checkpoint, and must end with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from actors import wire
from actors.carrying import carried_here, check_carried, slots_of
from learning.build import CPU, Program
from learning.errors import NonFiniteLossError, UserError, one_line
from learning.learners.body import Body
from learning.numerics import backward, seeded
from learning.sequential import SequentialEngine
from learning.units import Unit
from orchestrator.costs import uncompiled
from orchestrator.profile import isolated
from orchestrator.tensor_files import encode_tensors

Blocks = Sequence[Sequence[Unit]]
FEW = 2
"""Rows that are enough for batch statistics."""
SCALE = 2.0**-10
"""Exact in every type: what is in proportion to a gradient has the same digits."""


def rehearse(program: Program, blocks: Blocks, x: Tensor, y: Tensor) -> None:
    """Try some steps of a program on copies; the network stays as it is.

    Args:
        program: which `learning.checks.check_program` has passed.
        blocks: the units of each block.
        x: a shard of inputs, (b, ...).
        y: its labels, (b, ...).

    Raises:
        UserError: for what fails, is lost on the way, or does not come out the same.
    """
    with isolated(CPU):
        try:
            _rehearse(program, blocks, x[:FEW], y[:FEW])
        except UserError:
            if len(x) <= FEW:
                raise
            _rehearse(program, blocks, x, y)  # a unit may be made for shards of one size


def _rehearse(program: Program, blocks: Blocks, x: Tensor, y: Tensor) -> None:
    for k, units in enumerate(blocks):
        check_carried(units, _foreign(blocks, k))
    settings = replace(program.settings, batch=len(x), shards=1)
    program = uncompiled(replace(program, settings=settings))
    first, second = (_engine(program, blocks) for _ in range(2))
    for units, block in zip(blocks, first.blocks, strict=True):
        _check_arrived(units, block.units)
    before = [(dict(_simple(b.units)), _kinds(b)) for b in second.blocks]
    last = max(program.rule.credit.delay(k, program.blocks) for k in range(1, program.blocks + 1))
    with torch.random.fork_rng(devices=[]):
        for step in range(last + 1):
            if not _try_step(first, step, x, y):
                return
        for block, (attributes, kinds) in zip(first.blocks, before, strict=True):
            _check_attributes(block, attributes)
            _check_kinds(block, kinds)
        second.load_state_dict(_through_a_file(first), last + 1)
        for engine in (first, second):
            if not _try_step(engine, last + 1, x, y):
                return
    _check_same(first, second)
    _check_proportion(second, x)


def _engine(program: Program, blocks: Blocks) -> SequentialEngine:
    return SequentialEngine(program, [carried_here(units) for units in blocks])


def _try_step(engine: SequentialEngine, step: int, x: Tensor, y: Tensor) -> bool:
    """Train a step; whether its losses were finite. Those of a run say more than one tried here."""
    try:
        engine.train_step(step, lambda *_: (x.clone(), y.clone()))
    except NonFiniteLossError:
        return False
    except UserError:
        raise
    except Exception as error:  # a module may raise anything
        fix = "change what fails"
        if "use_reentrant" in str(error):
            fix = "call torch.utils.checkpoint with use_reentrant=False"
        raise UserError(
            f"a step of training, tried on a copy of the network and {len(x)} rows, fails "
            f"({one_line(str(error))}): {fix}"
        ) from error
    return True


def _foreign(blocks: Blocks, own: int) -> dict[int, str]:
    mine = {id(t) for unit in blocks[own] for _, t in _named_tensors(unit)}
    return {
        id(t): name
        for k, units in enumerate(blocks)
        for unit in units
        for name, t in _named_tensors(unit)
        if k != own and id(t) not in mine
    }


def _named_tensors(unit: Unit) -> Iterator[tuple[str, Tensor]]:
    for name, t in (*unit.module.named_parameters(), *unit.module.named_buffers()):
        yield f"{unit.name}.{name}", t


def _check_arrived(units: Sequence[Unit], arrived: Sequence[Unit]) -> None:
    """What is registered or set on a module must be there in another process too."""
    for unit, other in zip(units, arrived, strict=True):
        theirs = dict(other.module.named_modules())
        for name, module in unit.module.named_modules():
            lost = set(_attributes(module)) - set(_attributes(theirs[name]))
            if lost:
                _refuse_lost(unit, f"{name}.{min(lost)}".lstrip("."))
        tensors = dict(_named_tensors(other))
        for name, tensor in _named_tensors(unit):
            if type(tensors[name]) is not type(tensor):
                _refuse_lost(unit, f"the type {type(tensor).__name__} of {name}")


def _refuse_lost(unit: Unit, what: str) -> None:
    raise UserError(
        f"unit {unit.name!r} loses {what} when it is sent to another process: let its pickle "
        "keep that, or do without"
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {**vars(module), **slots_of(module)}


def _simple(units: Sequence[Unit]) -> Iterator[tuple[str, Any]]:
    """Numbers, texts and the like that modules keep as attributes, by name."""
    for unit in units:
        for prefix, module in unit.module.named_modules():
            if type(module).get_extra_state is nn.Module.get_extra_state:
                for name, value in _attributes(module).items():
                    if name != "training" and (value is None or _is_plain(value)):
                        yield ".".join(filter(None, (unit.name, prefix, name))), value


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int, float, complex, str)


def _check_attributes(block: Body, before: Mapping[str, Any]) -> None:
    for name, value in _simple(block.units):
        was = before.get(name, value)
        if was is not value and _is_plain(value) and was != value and was == was:
            raise UserError(
                f"{name} is {value!r} after a step and was {was!r}, which no checkpoint keeps: "
                "make it a buffer, or return it from get_extra_state"
            )


def _kinds(block: Body) -> dict[str, tuple[torch.Size, torch.dtype]]:
    state = block.chain.whole_state()
    return {n: (t.shape, t.dtype) for n, t in state.items() if not n.startswith("extra.")}


def _check_kinds(block: Body, before: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
    after = _kinds(block)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise UserError(
                f"{name.partition('.')[2]} comes, goes or changes its shape or type in a step, so "
                "that a checkpoint would not fit the network: make it before training, of one "
                "shape and type"
            )


def _through_a_file(engine: SequentialEngine) -> dict[str, dict[str, Tensor]]:
    """The state of an engine as an actor sends it, after a look at whether a file could hold it."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensors in engine.state_dict().items():
        encode_tensors(tensors)
        try:
            state[name] = wire.decode(wire.copied(tensors), CPU)
        except (TypeError, RuntimeError) as error:
            raise UserError(
                f"the state of {name} cannot leave its actor ({one_line(str(error))}): use tensors "
                "of common types"
            ) from error
    return state


def _check_same(first: SequentialEngine, second: SequentialEngine) -> None:
    states = first.state_dict(), second.state_dict()
    for learner, tensors in states[0].items():
        for name, tensor in tensors.items():
            if not _same(tensor, states[1][learner][name]):
                raise UserError(
                    f"{name.partition('.')[2]} of {learner} ends otherwise when a step is done "
                    "again from a checkpoint: let units draw random numbers from torch, look at no "
                    "clock and no global, and keep what changes in buffers or get_extra_state"
                )


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _check_proportion(engine: SequentialEngine, x: Tensor) -> None:
    """Gradients here are of sums over samples: a backward pass must be linear in them."""
    for block in engine.blocks:
        leaf = block.entering(x).detach()
        if leaf.is_floating_point() or leaf.is_complex():
            leaf.requires_grad_()
        with seeded(CPU, "proportion", block.index), block.numerics.autocast():
            h = block.chain(leaf.clone())
            _check_on_the_wire(block, h)
            gradient = torch.randn(h.shape).to(h.dtype) if h.requires_grad else None
        leaves = [p for p in [*block.block_parameters, leaf] if p.requires_grad]
        if gradient is not None and leaves and h.dtype != torch.float16:
            large = _gradients(h, gradient, leaves)
            small = _gradients(h, gradient * SCALE, leaves)
            for a, b in zip(large, small, strict=True):
                if a is not None and b is not None and not _in_proportion(a, b):
                    raise UserError(
                        f"block {block.index} does not pass gradients on in proportion (a hook or "
                        "an autograd function that clips, say), and here they are of sums over "
                        "samples: use hooks on parameters, which get the mean over a batch, or "
                        "optimizer.clip"
                    )
        x = h.detach()


def _in_proportion(large: Tensor, small: Tensor) -> bool:
    return torch.allclose(small / SCALE, large, rtol=1e-2, atol=1e-6, equal_nan=True)


def _gradients(h: Tensor, gradient: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    for leaf in leaves:
        leaf.grad = None
    backward(h, gradient, inputs=leaves, retain_graph=True)
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return gradients


def _check_on_the_wire(block: Body, h: Tensor) -> None:
    try:
        wire.encode({"x": torch.zeros(1).to(h.dtype)})
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"block {block.index} gives {h.dtype}, which messages cannot hold "
            f"({one_line(str(error))}): cut the network at another unit"
        ) from error
