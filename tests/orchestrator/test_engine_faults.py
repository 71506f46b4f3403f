"""When something goes wrong in an actor, the driver says what, and the cluster is free again."""

from __future__ import annotations

import pytest
import ray

from learning.errors import NonFiniteLossError, UserError
from learning.networks import MLPSettings
from learning.rules import Local
from learning.settings import SGDSettings
from orchestrator.engine import ActorLostError
from orchestrator.events import Event, StepDone
from orchestrator.placement import Placement
from orchestrator.program import Calendar
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

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]

PLAIN = MLPSettings(widths=(12, 8), normalization="none")


def two_blocks(*, lr: tuple[float, ...] = (0.05, 0.05), cpus: float = 0.5) -> Case:
    return Case(Local(), PLAIN, ("layer2",), optimizer=SGDSettings(lr=lr), cpus=cpus)


def test_loss_that_is_not_finite_reaches_the_driver_and_close_frees_the_cluster() -> None:
    """Block 2 learns far too fast and takes all CPUs of the cluster with its neighbour."""
    case = two_blocks(lr=(0.05, 1e25), cpus=CPUS / 2)
    with inline_engine(case) as engine, pytest.raises(NonFiniteLossError) as expected:
        list(engine.train(range(20), Calendar()))
    engine = start_ray(case)
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
    again = Placement(case.build()[1])
    assert eventually(lambda: free_cpus() == 0)
    again.remove()


@pytest.mark.parametrize("name", ["source", "block1", "block2"])
def test_lost_actor_is_named_and_nobody_waits_for_it(name: str) -> None:
    with ray_engine(two_blocks()) as engine:
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


def test_error_in_the_constructor_of_an_actor_is_reported_and_frees_the_cluster() -> None:
    with pytest.raises(ActorLostError, match="^block2 could not start: ") as raised:
        start_ray(two_blocks(lr=(0.05,)))
    assert "optimizer.lr lists 1 values, but there is a block 2" in str(raised.value)
    assert free_cpus() == CPUS
