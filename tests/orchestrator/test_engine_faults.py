"""When something goes wrong in an actor, the driver says what, and the cluster is free again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn

from actors.shell import FencedError
from learning.errors import NonFiniteLossError, UserError
from learning.messages import Key
from learning.networks import MLPSettings
from learning.rules import Local
from learning.settings import SGDSettings
from learning.units import Unit
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Evaluated, Event, SnapshotTaken, StepDone, Worked
from orchestrator.losses import ActorLostError
from orchestrator.placement_groups import Placement
from orchestrator.program import Calendar
from orchestrator.settings import SourcePlace, Transport
from tests.orchestrator.engines import (
    CPUS,
    Case,
    eventually,
    free_cpus,
    handles,
    inline_engine,
    is_dead,
    ray_engine,
    start_ray,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")

PLAIN = MLPSettings(widths=(12, 8), normalization="none")


def two_blocks(*, lr: tuple[float, ...] = (0.05, 0.05), cpus: float = 0.5) -> Case:
    optimizer = SGDSettings().model_copy(update={"lr": lr})  # also what no file may ask for
    return Case(Local(), PLAIN, ("layer2",), optimizer=optimizer, cpus=cpus)


@pytest.mark.parametrize("transport", ["object_store", "direct"])
def test_loss_that_is_not_finite_reaches_the_driver_and_close_frees_the_cluster(
    transport: Transport,
) -> None:
    """Block 2 learns far too fast and takes all CPUs of the cluster with its neighbour."""
    case = two_blocks(lr=(0.05, 1e25), cpus=CPUS / 2)
    with inline_engine(case) as engine, pytest.raises(NonFiniteLossError) as expected:
        list(engine.train(range(20), Calendar()))
    engine = start_ray(case, transport=transport)
    actors = handles(engine)
    try:
        assert free_cpus() == 0
        seen: list[Event] = []
        with pytest.raises(UserError, match="loss of block 2 is nan at step 1") as raised:
            seen += engine.train(range(20), Calendar())
    finally:
        engine.close()
    assert free_cpus() == CPUS  # at once: the next run may start
    assert isinstance(raised.value, NonFiniteLossError)
    assert (raised.value.block, raised.value.step) == (2, 1)
    assert (expected.value.block, expected.value.step) == (2, 1)
    assert [name for name, actor in actors.items() if not is_dead(actor)] == []
    again = Placement.now(case.build()[1])
    assert eventually(lambda: free_cpus() == 0)
    again.remove()
    assert eventually(lambda: free_cpus() == CPUS)  # Ray counts them a little later


def test_finished_work_of_a_chunk_that_fails_is_not_lost() -> None:
    class Bomb(nn.Module):
        """Lets nine training steps through."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("left", torch.tensor(9))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.left -= 1
            return x * (1.0 if self.left >= 0 else math.nan)

    case = two_blocks()
    program, plan, blocks = case.build()
    blocks[1] = [Unit("bomb", Bomb()), *blocks[1]]
    engine = RayEngine(
        Chain(
            program,
            plan,
            blocks,
            case.data,
            case.augment,
            evaluation_batch=8,
            threads=1,
            window=3,
        )
    )
    seen: list[Event] = []
    calendar = Calendar({5: ("validation",)}, frozenset({5}), {"validation": 2})
    try:
        with pytest.raises(NonFiniteLossError, match="block 2 is nan at step 9"):
            for event in engine.train(range(50), calendar):
                seen.append(event)
    finally:
        engine.close()
    steps = [event.step for event in seen if isinstance(event, StepDone)]
    assert steps in (list(range(8)), list(range(9)))
    assert [event.step for event in seen if isinstance(event, SnapshotTaken)] == [5]
    assert [event.step for event in seen if isinstance(event, Evaluated)] == [5]
    spans = [s for event in seen if isinstance(event, Worked) for s in event.spans]
    assert max(s.step for s in spans if s.kind == "F") >= 8


def break_source(engine: RayEngine, place: SourcePlace, at: int, error: Exception) -> None:
    """Let the source raise an error instead of making the batch of step `at`."""

    def replace(shell: Any) -> None:
        batches = shell._executor.source.batches
        shard = batches.shard

        def broken(step: int, index: int) -> tuple[Tensor, Tensor]:
            if step == at:
                raise error
            return shard(step, index)

        batches.shard = broken

    name = "block1" if place == "block1" else "source"
    ray.get(handles(engine)[name].__ray_call__.remote(replace))


@pytest.mark.parametrize("place", ["block1", "actor"])
def test_users_error_in_the_source_reaches_the_driver_and_finished_work_is_kept(
    place: SourcePlace,
) -> None:
    seen: list[Event] = []
    with ray_engine(two_blocks(), source=place) as engine:
        break_source(engine, place, 30, UserError("row 7 is torn: mend it"))
        with pytest.raises(UserError, match="^row 7 is torn: mend it$"):
            for event in engine.train(range(100_000), Calendar()):
                seen.append(event)
    steps = [event.step for event in seen if isinstance(event, StepDone)]
    assert steps == list(range(len(steps))) and len(steps) <= 30
    spans = [s for e in seen if isinstance(e, Worked) for s in e.spans]
    assert [s.step for s in spans if s.kind == "batch"] == list(range(30))


@pytest.mark.parametrize("place", ["block1", "actor"])
def test_crash_of_the_source_ends_the_run_with_its_cause(place: SourcePlace) -> None:
    with ray_engine(two_blocks(), window=1, source=place) as engine:
        break_source(engine, place, 30, ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError, match="a bug") as raised:
            list(engine.train(range(100_000), Calendar()))
    assert "broken" in str(raised.value)  # the traceback of the actor
    assert free_cpus() == CPUS


def test_a_message_that_cannot_be_delivered_ends_the_run() -> None:
    with ray_engine(two_blocks()) as engine:
        block = handles(engine)["block2"]
        arrays = {"x": np.zeros((16, 12), np.float32), "y": np.zeros(16, np.int64)}
        ray.get(block.deliver.remote(Key("x", 999), arrays, False, 1))
        block.deliver.remote(Key("x", 999), arrays, False, 1)  # nobody looks at how this ends
        with pytest.raises(RuntimeError, match="a second message"):
            list(engine.train(range(20), Calendar()))


@pytest.mark.parametrize("transport", ["object_store", "direct"])
@pytest.mark.parametrize(
    ("name", "source"), [("source", "actor"), ("block1", "block1"), ("block2", "block1")]
)
def test_lost_actor_is_named_and_nobody_waits_for_it(
    name: str, source: SourcePlace, transport: Transport
) -> None:
    with ray_engine(two_blocks(), transport=transport, source=source) as engine:
        actors = handles(engine)
        steps = []
        with pytest.raises(ActorLostError, match=f"^{name} was lost: ") as raised:
            for event in engine.train(range(100_000), Calendar()):
                if isinstance(event, StepDone):
                    steps.append(event.step)
                    if event.step == 20:
                        ray.kill(actors[name])
        assert steps == list(range(len(steps))) and len(steps) > 20
        assert not isinstance(raised.value, UserError)
        assert is_dead(actors[name])
    assert all(is_dead(actor) for actor in actors.values())
    assert free_cpus() == CPUS


def test_error_in_the_making_of_a_learner_is_reported_and_frees_the_cluster() -> None:
    with pytest.raises(UserError, match="optimizer.lr lists 1 values, but there is a block 2"):
        start_ray(two_blocks(lr=(0.05,)))
    assert free_cpus() == CPUS


def test_a_message_of_an_earlier_incarnation_is_refused() -> None:
    with ray_engine(two_blocks()) as engine:
        engine._chain.renew()
        block, arrays = handles(engine)["block2"], {"x": np.zeros((16, 12), np.float32)}
        with pytest.raises(FencedError, match="of incarnation 1 in 2"):
            ray.get(block.deliver.remote(Key("x", 0), arrays, False, 1))
        ray.get(block.deliver.remote(Key("x", 0), arrays, False, 2))
