"""Tiny programs and data, and both engines for them, that the tests of the engines share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError

from learning.build import Program
from learning.data import AugmentSettings, Batches, Dataset, arrays_dataset
from learning.learners.base import LearnerSettings
from learning.networks import MLPSettings, NetworkSettings, build_network
from learning.rules import Local, Rule
from learning.settings import (
    AdamWSettings,
    CodecSettings,
    Float32CodecSettings,
    OneCycleSchedule,
    OptimizerSettings,
    PrecisionSettings,
    ScheduleSettings,
    UpdateSettings,
)
from learning.units import Unit, units_of
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Changed, Evaluated, Event, SnapshotTaken, StepDone, Worked
from orchestrator.inline import InlineEngine
from orchestrator.plan import Plan
from orchestrator.planning import make_plan
from orchestrator.program import Calendar
from orchestrator.settings import BlocksSettings, RecoverySettings, SourcePlace, Transport

CPUS = 4  # of the fixture `ray_cluster`
STEPS = 50
CALENDAR = Calendar(
    {10: ("validation",), 24: ("validation",), STEPS - 1: ("validation", "test")},
    frozenset({24, STEPS - 1}),
    {"validation": 2, "test": 3},
)
EVALUATION_BATCH = 8
Told = StepDone | Evaluated | SnapshotTaken
BATCH = 16

torch.set_num_threads(1)


def images() -> Dataset:
    """160 noisy images of 2 x 6 x 6 in four classes; 16 of them for validation, 20 for tests."""
    random = np.random.default_rng(0)
    labels = random.integers(4, size=180)
    x = random.normal(size=(180, 2, 6, 6)) + 2 * random.normal(size=(4, 2, 6, 6))[labels]
    return arrays_dataset(x[:160], labels[:160], x[160:], labels[160:], classes=4)


@dataclass(frozen=True)
class Case:
    """Everything that determines the bits of a run."""

    rule: Rule = Local()
    network: NetworkSettings = MLPSettings(widths=(12, 8, 10))
    at: tuple[str, ...] = ("layer2", "layer3")
    shards: int = 1
    seed: int = 0
    steps: int = STEPS
    optimizer: OptimizerSettings = AdamWSettings(lr=0.01)
    schedule: ScheduleSettings = OneCycleSchedule()
    precision: PrecisionSettings = PrecisionSettings()
    update: UpdateSettings = UpdateSettings()
    codec: CodecSettings = Float32CodecSettings()
    augment: AugmentSettings = AugmentSettings(flip=True, crop=1)
    data: Dataset = field(default_factory=images)
    cpus: float = 0.5

    def build(self) -> tuple[Program, Plan, list[list[Unit]]]:
        """The program, its plan, and the units of a network built anew."""
        shape, classes = self.data.input_shape, self.data.classes
        units = units_of(build_network(self.network, shape, classes, self.seed))
        plan = make_plan(
            units,
            BlocksSettings(at=self.at),
            torch.zeros(BATCH, *shape),
            cpus=self.cpus,
            profile=False,
        )
        settings = LearnerSettings(
            self.optimizer,
            self.schedule,
            self.precision,
            self.seed,
            BATCH,
            self.shards,
            self.steps,
            self.update,
            self.codec,
        )
        shapes = tuple(block.output_shape for block in plan.blocks)
        program = Program(self.rule, settings, shapes, classes, input_shape=shape)
        return program, plan, plan.units_of_blocks(units)

    def with_seed(self, seed: int) -> Case:
        """The same run from another seed."""
        return replace(self, seed=seed)


def start_chain(
    case: Case,
    window: int = 2,
    transport: Transport = "object_store",
    source: SourcePlace = "block1",
    *,
    lanes: int = 1,
    grows: bool = False,
) -> Chain:
    """The actors of a case."""
    program, plan, blocks = case.build()
    return Chain(
        program,
        plan,
        blocks,
        case.data,
        case.augment,
        evaluation_batch=EVALUATION_BATCH,
        threads=1,
        window=window,
        transport=transport,
        source=source,
        lanes=lanes,
        grows=grows,
    )


def start_ray(
    case: Case,
    window: int = 2,
    transport: Transport = "object_store",
    source: SourcePlace = "block1",
    recovery: RecoverySettings | None = None,
) -> RayEngine:
    """A Ray engine for a case."""
    return RayEngine(start_chain(case, window, transport, source), recovery)


@contextmanager
def ray_engine(
    case: Case,
    window: int = 2,
    transport: Transport = "object_store",
    source: SourcePlace = "block1",
) -> Iterator[RayEngine]:
    """A Ray engine that is closed afterwards."""
    engine = start_ray(case, window, transport, source)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def inline_engine(case: Case) -> Iterator[InlineEngine]:
    """A sequential engine that is closed afterwards."""
    program, _, blocks = case.build()
    batches = Batches(
        case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment
    )
    engine = InlineEngine(program, blocks, batches, evaluation_batch=EVALUATION_BATCH, threads=1)
    try:
        yield engine
    finally:
        engine.close()


def told(events: Iterable[Event]) -> list[Told]:
    """What an engine says about the run, without what it says about time and actors."""
    return [event for event in events if not isinstance(event, Worked | Changed)]


def snapshot_of(events: Sequence[Event], step: int) -> SnapshotTaken:
    """The snapshot after a step."""
    (found,) = [e for e in events if isinstance(e, SnapshotTaken) and e.step == step]
    return found


def differences(left: Sequence[Told], right: Sequence[Told]) -> list[str]:
    """Where two runs differ in any bit: event, learner and tensor."""
    found = [] if len(left) == len(right) else [f"{len(left)} and {len(right)} events"]
    for a, b in zip(left, right, strict=False):
        name = f"{type(a).__name__} {a.step}"
        if not (isinstance(a, SnapshotTaken) and isinstance(b, SnapshotTaken)):
            found += [] if a == b else [f"{name}: {a} and {b}"]
            continue
        tensors, others = _flat(a), _flat(b)
        if a.step != b.step or list(tensors) != list(others):
            found.append(f"{name}: other names")
            continue
        found += [f"{name}: {n}" for n, t in tensors.items() if not _same_bits(t, others[n])]
    return found


def _flat(snapshot: SnapshotTaken) -> dict[str, torch.Tensor]:
    names = sorted(
        (learner, name) for learner in snapshot.state for name in snapshot.state[learner]
    )
    return {f"{learner}/{name}": snapshot.state[learner][name] for learner, name in names}


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and _bytes(a) == _bytes(b)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()  # also of bfloat16


def handles(engine: RayEngine) -> dict[str, Any]:
    """The actors of an engine by name."""
    return {actor.name: actor.handle for actor in engine._chain.actors}


def is_dead(handle: Any) -> bool:
    """Whether an actor has ended; waits for its end, or for it to answer."""
    try:
        ray.get(handle.identify.remote(), timeout=600)
    except RayActorError:
        return True
    return False


def free_cpus() -> float:
    """The CPUs of the cluster that nobody has reserved."""
    return ray.available_resources().get("CPU", 0.0)


def eventually(condition: Callable[[], bool], seconds: float = 300.0) -> bool:
    """Whether a condition comes true: Ray counts resources with a delay."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True
