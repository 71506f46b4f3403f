"""Lanes on actors that agree every so many steps: the bits of the lanes in one process."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import pytest
from torch import Tensor

from actors.executors import BlockExecutor
from actors.mailbox import Mailbox
from actors.operations import Kind, Operation
from learning.build import Program, build_block
from learning.data import Batches
from learning.lanes import LaneEngine
from learning.learners.feedback import FeedbackSettings
from learning.messages import Key, Message
from learning.networks import MLPSettings
from learning.rules import BLL, Local
from learning.settings import OuterSettings
from learning.units import Unit
from orchestrator.engine import RayEngine
from orchestrator.events import Changed, Evaluated, Event, SnapshotTaken, StepDone
from orchestrator.lane_settings import LaneSettings
from orchestrator.plan import Plan
from orchestrator.program import Calendar
from orchestrator.stopping import Stopping
from tests.orchestrator.engines import (
    BATCH,
    EVALUATION_BATCH,
    Case,
    Told,
    differences,
    eventually,
    told,
)
from tests.orchestrator.incidents import Fault, Keeper

pytestmark = pytest.mark.usefixtures("ray_cluster")

Start = Callable[[Case, int, int], RayEngine]

EVERY, STEPS = 5, 30
OUTER = OuterSettings(every=EVERY, lr=0.6, momentum=0.8)
CALENDAR = Calendar(
    {14: ("validation",), STEPS - 1: ("validation", "test")},
    frozenset({14, STEPS - 1}),
    {"validation": 2, "test": 3},
)
NORMED = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)


class Apart(Case):
    """A case whose lanes agree every five steps."""

    def build(self) -> tuple[Program, Plan, list[list[Unit]]]:
        program, plan, blocks = super().build()
        return replace(program, settings=replace(program.settings, outer=OUTER)), plan, blocks


LOCAL = Apart(Local(), NORMED, shards=4, steps=STEPS, cpus=0.4)
BLOCKWISE = Apart(BLL(feedback=FeedbackSettings(delay="auto")), shards=4, steps=STEPS, cpus=0.4)


class InOneProcess:
    """Lanes in one process, and what they tell."""

    def __init__(self, case: Case, lanes: int, snapshots: Collection[int]) -> None:
        program, _, blocks = case.build()
        self.engine, self.snapshots = LaneEngine(program, blocks, lanes), snapshots
        self.batches = Batches(
            case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment
        )
        self.told: list[Told] = []
        self.taken: dict[int, SnapshotTaken] = {}

    def run(self, steps: range, tell: bool = True) -> InOneProcess:
        """Go through some steps."""
        for step in steps:
            now: list[Told] = [StepDone(step, self.engine.train_step(step, self.batches.shard))]
            for split in CALENDAR.evaluations.get(step, ()):
                rows = self.batches.evaluation(split, EVALUATION_BATCH)
                now.append(Evaluated(step, split, self.engine.evaluate(step, split, rows)))
            if step in self.snapshots:
                state = {name: _copy(tensors) for name, tensors in self.engine.state_dict().items()}
                self.taken[step] = SnapshotTaken(step, state)
                now.append(self.taken[step])
            self.told += now if tell else []
        return self

    def back_to(self, step: int) -> None:
        """All lanes go on from the snapshot before `step`."""
        for lane in self.engine.lanes:
            lane.load_state_dict(self.taken[step - 1].state, step)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_two_lanes_end_with_the_bits_of_one_process(start_lanes: Start) -> None:
    events = told(start_lanes(LOCAL, 2, 2).train(range(STEPS), CALENDAR))
    expected = InOneProcess(LOCAL, 2, CALENDAR.snapshots).run(range(STEPS)).told
    assert differences(events, expected) == []


def test_lanes_come_and_go_and_snapshots_are_taken_where_all_agree(
    start_lanes: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of two or seven steps, and a snapshot is always due."""
    monkeypatch.setattr("orchestrator.elasticity.LOOK_SECONDS", 0.0)
    lengths = itertools.cycle([2, 2, 7])
    monkeypatch.setattr("orchestrator.stream._chunk_length", lambda *_: next(lengths))
    engine = start_lanes(BLOCKWISE, 1, 1)
    elasticity, chain = engine._elasticity, engine._chain
    events = list[Event]()

    def ready() -> bool:
        elasticity.look()
        return elasticity._growth is not None and elasticity._growth.is_ready()

    first = chain.lanes[0]
    for event in engine.train(range(STEPS), replace(CALENDAR, snapshot_seconds=1e-9)):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            elasticity.settings = LaneSettings(min=1, max=2)
            assert eventually(ready)
        # As soon as it has joined, while there are steps left that are not handed out.
        if isinstance(event, Changed) and event.lanes == 2:
            elasticity.settings = LaneSettings(min=1, max=1)
            monkeypatch.setattr(
                elasticity, "_touched", lambda: (first, [1], "") if first in chain.lanes else None
            )
    changes = [e for e in events if isinstance(e, Changed)]
    assert [change.lanes for change in changes] == [2, 1]
    assert [lane.number for lane in chain.lanes] == [2]
    joined, left = (change.step for change in changes)
    assert joined % EVERY == 0 and left % EVERY == 0
    snapshots = [e.step for e in events if isinstance(e, SnapshotTaken)]
    assert len(snapshots) > 2 and all((step + 1) % EVERY == 0 for step in snapshots)
    expected = InOneProcess(BLOCKWISE, 1, snapshots).run(range(joined))
    expected.engine.resize(2, joined)
    expected.run(range(joined, left))
    del expected.engine.lanes[0]
    assert differences(told(events), expected.run(range(left, STEPS)).told) == []


def test_after_a_loss_all_lanes_go_on_from_the_first(
    start_lanes: Start, step_a_chunk: None
) -> None:
    """So the bits are those of lanes that went back, not of lanes that lost nothing."""
    engine = start_lanes(LOCAL, 2, 2)
    actors = {actor.name: actor for actor in engine._chain.actors}
    Fault("SIGKILL", "block2.lane2", (Kind.FORWARD, 22)).plant(actors)
    keeper, events = Keeper(), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
    (incident,) = keeper.incidents
    assert incident.restored == 15
    expected = InOneProcess(LOCAL, 2, CALENDAR.snapshots).run(range(incident.step))
    undisturbed = list(expected.told)
    expected.back_to(15)
    expected.run(range(15, incident.step), tell=False).run(range(incident.step, STEPS))
    assert differences(told(events), expected.told) == []
    undisturbed += (
        InOneProcess(LOCAL, 2, CALENDAR.snapshots).run(range(STEPS)).told[len(undisturbed) :]
    )
    assert differences(told(events), undisturbed) != []


class Recording:
    """A channel that keeps what is sent."""

    blocked_ns, is_blocked = 0, False

    def __init__(self) -> None:
        self.sent: dict[Key, Message] = {}

    def send(self, key: Key, message: Message) -> int:
        self.sent[key] = {name: tensor.clone() for name, tensor in message.items()}
        return 0

    def leave(self) -> None: ...

    def close(self) -> None: ...


def test_between_outer_steps_lanes_tell_each_other_nothing() -> None:
    program, _, blocks = LOCAL.build()
    mailbox, channel = Mailbox(), Recording()
    executor = BlockExecutor(build_block(program, 3, blocks[2]), 0, mailbox, 1, lane=2)
    executor.connect({"lane1": channel})
    twin = build_block(program, 3, blocks[2]).outer
    assert twin is not None
    for step in range(EVERY - 1):
        executor.execute(Operation(Kind.UPDATE, step))
    assert channel.sent == {}
    mailbox.put(Key("partial", EVERY - 1, origin=1), twin.partial())
    executor.execute(Operation(Kind.UPDATE, EVERY - 1))
    assert list(channel.sent) == [Key("partial", EVERY - 1, origin=2)]


@pytest.mark.long
def test_lanes_that_are_asked_to_stop_go_on_until_they_agree(
    start_lanes: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = itertools.cycle([1, 2])
    monkeypatch.setattr("orchestrator.stream._chunk_length", lambda *_: next(lengths))
    engine = start_lanes(LOCAL, 2, 2)
    stopping, events = Stopping(), list[Event]()
    with stopping.patiently():
        for event in engine.train(range(STEPS), CALENDAR, None, stopping):
            events.append(event)
            if isinstance(event, StepDone) and event.step == 6:
                stopping.ask(signal.SIGTERM)
    last = told(events)[-1]
    assert isinstance(last, SnapshotTaken) and last.step in (9, 14)
    steps, snapshots = range(last.step + 1), {*CALENDAR.snapshots, last.step}
    expected = InOneProcess(LOCAL, 2, snapshots).run(steps).told
    assert differences(told(events), expected) == []
