"""Costs of a network with more blocks than were measured: the middle blocks repeat."""

from __future__ import annotations

from dataclasses import replace

from actors.operations import Kind, Operation
from learning.build import Program
from learning.credit import Guided
from learning.errors import UserError
from learning.messages import block_name, feedback_name
from orchestrator.costs import Costs, OperationCost
from orchestrator.dependencies import SOURCE, number
from orchestrator.simulation_actors import Sizes
from orchestrator.simulation_routes import Routes

ENOUGH = 4
"""Blocks with which the usual rules have every kind of inner block and feedback module."""


def widen(program: Program, blocks: int) -> Program:
    """The same rule for `blocks` blocks: the shape at the middle boundary repeats.

    No network is built for it: operations and messages need nothing but the program.

    Raises:
        UserError: when 1 block is asked for of a program with more, or none at all.
    """
    if blocks < 1 or (blocks == 1) != (program.blocks == 1):
        raise UserError(
            f"{blocks} blocks cannot be predicted from {program.blocks} measured ones: measure at "
            "least 2 and ask for at least 2"
        )
    shapes = program.output_shapes
    like = (_like(k, blocks, program.blocks) for k in range(1, blocks + 1))
    return replace(program, output_shapes=tuple(shapes[m - 1] for m in like))


def scale(costs: Costs, program: Program, blocks: int, *, share: float = 1.0) -> Costs:
    """The costs of a homogeneous deep network with `blocks` blocks.

    The first and the last block are the measured ones. Between them the measured middle blocks
    repeat in turn (with two measured blocks, the first one does). An operation that the block to be
    repeated did not have is that of another middle block: with N-wise credit the second block of
    three forms no loss, but every inner block of a long chain does. Feedback modules follow their
    blocks, the top one is the measured top.

    Args:
        costs: measured with `program`.
        blocks: K of the network to predict.
        share: of a measured block that one of the new blocks is, 1/v for v virtual stages a
            device. Times and memory are divided so; messages stay as large.

    Raises:
        UserError: when no measured block had an operation, or sent a message, that one of the new
            ones has.
    """
    measured, wide = program.blocks, widen(program, blocks)
    routes = Routes(wide, "actor")  # costs have batches as the source's, whoever makes them
    operations: dict[tuple[str, Kind], OperationCost] = {}
    activation: dict[str, int] = {}
    state: dict[str, int] = {}
    for name in routes.actors():
        model = _model(name, blocks, measured)
        for kind in {op.kind for op in _some_operations(routes, name)}:
            cost = _cost(costs, name, model, kind, measured)
            part = 1.0 if name == SOURCE else share
            operations[name, kind] = replace(cost, seconds=cost.seconds * part)
        for here, there in ((activation, costs.activation_bytes), (state, costs.state_bytes)):
            if model in there:
                here[name] = round(there[model] * share)
    made = Costs(
        operations=operations,
        activation_bytes=activation,
        state_bytes=state,
        threads=costs.threads,
    )
    _check_messages(made, routes, measured)
    return made


def _check_messages(costs: Costs, routes: Routes, measured: int) -> None:
    """Refuse costs without the size of a message that one of the new actors sends.

    For instance, of two feedback modules in a chain only the top one sends a table down, and it is
    no model for those between.
    """
    sizes = Sizes(costs)
    for name in routes.actors():
        for op in _some_operations(routes, name):
            for address in routes.sends(name, op):
                if not sizes.knows(name, address.key):
                    raise _unmeasured(f"message {address.key.what!r} of {name}", measured)


def _unmeasured(what: str, measured: int) -> UserError:
    enough = max(ENOUGH, measured + 1)
    return UserError(
        f"{what} was not measured on {measured} blocks: measure more of them, "
        f"blocks.count={enough} or more (or more names in blocks.at)"
    )


def _some_operations(routes: Routes, name: str) -> list[Operation]:
    """An actor's operations in some steps, of every kind; weights are told in the first one."""
    credit, last = routes.credit, routes.program.blocks
    phases = credit.period if isinstance(credit, Guided) else 1
    late = credit.delay(1, last)  # the last to see a gradient sees it then
    steps = (range(phases), range(late, late + 1))
    return [op for some in steps for op in routes.operations(name, some)]


def _like(k: int, blocks: int, measured: int) -> int:
    """The measured block that block k of `blocks` is like."""
    if k == blocks:
        return measured
    if k == 1 or measured <= 2:
        return 1
    return 2 + (k - 2) % (measured - 2)


def _model(name: str, blocks: int, measured: int) -> str:
    """The measured actor that an actor of the wider program is like."""
    if name == SOURCE:
        return name
    k = number(name)
    if name.startswith("block"):
        return block_name(_like(k, blocks, measured))
    # There are K-1 modules; the top one reads the label instead of a table.
    if k == blocks - 1:
        return feedback_name(measured - 1)
    return feedback_name(min(_like(k, blocks, measured), max(1, measured - 2)))


def _cost(costs: Costs, name: str, model: str, kind: Kind, measured: int) -> OperationCost:
    """What an operation costs: that of the actor's model, or else of the nearest inner block.

    The last block has none to stand in for it, and it stands in for no other: its loss is the
    task's.
    """
    cost = costs.operations.get((model, kind))
    if cost is not None:
        return cost
    if name.startswith("block") and model != block_name(measured):
        at = number(model)
        for k in sorted(range(1, measured), key=lambda k: (abs(k - at), k)):
            if (block_name(k), kind) in costs.operations:
                return costs.operations[block_name(k), kind]
    raise _unmeasured(f"operation {kind.value!r} of {name}", measured)
