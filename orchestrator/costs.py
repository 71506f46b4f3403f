"""What the operations of a program cost: seconds, messages and memory, measured in this process.

The learners, executors and programs are those of a run. They work on deep copies, with a forked
random generator: the network and the global random state stay as they are. The copies do not move
either (the learning rate is 0, which costs the same), so that no rate can spoil the measurement,
and what a rule raises over a share of all steps is at its full height from step 1 on.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from actors.execution import Executor
from actors.operations import Kind, Operation
from learning.build import CPU, Program
from learning.data import Batches
from learning.errors import NonFiniteLossError, UserError
from learning.policies.fused import FusedUpdater
from learning.units import Unit
from orchestrator.dependencies import SOURCE, in_order, programs
from orchestrator.gathered import Learner, Pipe, Sent, make_executors, make_learners
from orchestrator.memory import KeptMeter, persistent
from orchestrator.profile import isolated, now

LONGEST_SEARCH = 1_000_000
"""Steps in which a phase of a credit must come up to be timed."""


@dataclass(frozen=True, kw_only=True)
class OperationCost:
    """What one operation costs.

    Attributes:
        seconds: median time without waiting and sending. Where the operations of one kind differ,
            by whose loss a gradient is of, the mean of their medians.
        sends: what such an operation sends, where it sends it; not every one sends all.
    """

    seconds: float
    sends: tuple[Sent, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the actors of a program cost, by their names: `source`, `block3`, `feedback2`.

    Attributes:
        operations: by actor and kind of operation.
        activation_bytes: what one shard keeps, at most, between its forward and last backward pass.
        state_bytes: parameters, buffers, gradients and optimizer state, auxiliary networks
            included.
        threads: torch threads of the measurement.
    """

    operations: Mapping[tuple[str, Kind], OperationCost]
    activation_bytes: Mapping[str, int]
    state_bytes: Mapping[str, int]
    threads: int


def measure_costs(
    program: Program,
    blocks: Sequence[Sequence[Unit]],
    batches: Batches,
    *,
    threads: int,
    repeats: int = 5,
    device: torch.device = CPU,
) -> Costs:
    """Execute some steps of a program here and measure every operation.

    The first steps warm up, and are those in which memory is metered. What happens in them alone,
    such as publishing weights once in a thousand steps, is timed there.

    Args:
        blocks: the units of each block.
        threads: torch threads, as an actor would have.
        repeats: timed steps for each of the credit's phases.
        device: of blocks and feedback modules.

    Raises:
        UserError: what the program would fail with, a loss that is not finite, or `repeats`
            below 1.
    """
    if repeats < 1:
        raise UserError(f"repeats = {repeats} is less than 1: use at least 1 timed step")
    try:
        return _measured(program, blocks, batches, threads, repeats, device)
    except NonFiniteLossError as error:
        raise UserError(
            f"the loss of block {error.block} is {error.loss} in step {error.step} of measuring "
            "costs, which moves no weights: mend the data or the network, or its initial weights"
        ) from error


def uncompiled(program: Program) -> Program:
    """The program with its blocks run as written, whatever `precision.compile` is.

    A plan is made before the actors are, on the driver: there CUDA graphs may find no GPU, and
    compiling takes longer than all measuring.
    """
    settings = program.settings
    plain = settings.precision.model_copy(update={"compile": "none"})
    return replace(program, settings=replace(settings, precision=plain))


def _measured(
    program: Program,
    blocks: Sequence[Sequence[Unit]],
    batches: Batches,
    threads: int,
    repeats: int,
    device: torch.device,
) -> Costs:
    still = program.settings.optimizer.model_copy(update={"lr": 0.0})
    program = replace(program, settings=replace(program.settings, steps=1, optimizer=still))
    warm, timed = _steps(program, repeats)
    with _threads(threads), isolated(device), torch.autocast(device.type, enabled=False):
        learners = make_learners(program, blocks, device)
        executors = make_executors(program, learners, batches, threads)
        pace = _Pace(executors, device)
        meter = KeptMeter(t for learner in learners.values() for t in persistent(learner))
        done: set[tuple[str, Operation]] = set()
        for step in [*warm, *timed]:
            lists = programs(program, range(step, step + 1))
            for name, op, _ in in_order(program, lists, done, mixing=True):
                if step in warm:
                    with meter.watching(), meter.at((name, op.step, op.shard)):
                        pace.run(name, op, warm=True)
                else:
                    pace.run(name, op, warm=False)
        state = {name: _state_bytes(learner) for name, learner in learners.items()}
    kept = dict.fromkeys(executors, 0)
    for (name, _, _), size in meter.peak.items():
        kept[name] = max(kept[name], size)
    return Costs(
        operations=pace.costs(),
        activation_bytes=kept,
        state_bytes={SOURCE: 0, **state},
        threads=threads,
    )


def _steps(program: Program, repeats: int) -> tuple[list[int], list[int]]:
    """The steps to warm up in and those to time: of each phase of the credit enough.

    Delays and rising weights are over after the warm-up. Where no message goes from one step to a
    later one, the steps between the first ones of two phases may be left out.
    """
    credit, last = program.rule.credit, program.blocks
    first = 1 + max(1, *(credit.delay(k, last) for k in range(1, last + 1)))
    phases = credit.hops()
    if len(phases) == 1:
        return list(range(first)), list(range(first, first + repeats))
    linked = program.feedback_modules or program.rule.readings(last)
    warm: list[int] = []
    timed: list[int] = []
    missing = [first + repeats] * len(phases)
    for step in range(100 if linked else LONGEST_SEARCH):
        phase = phases.index(credit.at(step))
        if missing[phase] > 0 or linked:
            (warm if missing[phase] > repeats else timed).append(step)
        missing[phase] -= 1
        if max(missing) <= 0:
            break
    return warm, timed


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Pace:
    """Runs operations and keeps their times and messages."""

    def __init__(self, executors: Mapping[str, Executor], device: torch.device) -> None:
        self._executors, self._device = executors, device
        self._seconds: _Times = defaultdict(lambda: defaultdict(list))
        self._warm: _Times = defaultdict(lambda: defaultdict(list))
        self._sent: dict[tuple[str, Kind], dict[tuple[str, str], list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def run(self, name: str, op: Operation, *, warm: bool) -> None:
        """Execute one operation."""
        executor = self._executors[name]
        started = now(self._device)
        executor.execute(op)
        seconds = now(self._device) - started
        times = self._warm if warm else self._seconds
        times[name, op.kind][op.origin].append(seconds)
        for pipe in executor.channels.values():
            assert isinstance(pipe, Pipe)
            for sent in pipe.carried:
                self._sent[name, op.kind][sent.to, sent.what].append(sent.size)
            pipe.carried.clear()

    def costs(self) -> dict[tuple[str, Kind], OperationCost]:
        """Medians by actor and kind; where nothing was timed, those of the warm-up."""
        result: dict[tuple[str, Kind], OperationCost] = {}
        for which, by_origin in {**self._warm, **self._seconds}.items():
            sends = (
                Sent(to, what, round(statistics.median(sizes)))
                for (to, what), sizes in self._sent[which].items()
            )
            medians = [statistics.median(times) for times in by_origin.values()]
            result[which] = OperationCost(seconds=statistics.fmean(medians), sends=tuple(sends))
        return result


_Times = defaultdict[tuple[str, Kind], defaultdict[int, list[float]]]
"""Seconds by actor and kind, then by the block whose loss it is about."""


def _state_bytes(learner: Learner) -> int:
    """Bytes of parameters, buffers, gradients and optimizer state, each tensor once."""
    own = {id(t): t.nbytes for t in persistent(learner)}
    gradients = [p.nbytes for p in learner.updater.parameters]
    if isinstance(learner.updater, FusedUpdater):  # frees each before the next comes
        gradients = [max(gradients, default=0)]
    optimizer = sum(t.nbytes for t in learner.updater.state_dict().values())
    return sum(own.values()) + sum(gradients) + optimizer
