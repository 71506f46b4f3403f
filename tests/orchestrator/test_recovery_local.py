"""Recovery `local`: only what was lost goes back; the rest is what one process computes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import Tensor

from actors.operations import Kind
from learning.build import Program
from learning.checks import check_local_recovery
from learning.data import Batches
from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.messages import Message, feedback_name
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop, DelayedGradients, Local, Rule
from learning.sequential import SequentialEngine
from orchestrator.events import SnapshotTaken, StepDone
from orchestrator.incidents import Incident
from orchestrator.settings import RecoverySettings
from tests.orchestrator.engines import BATCH, CALENDAR, STEPS, Case, told
from tests.orchestrator.incidents import Fault, Keeper, State, by_name
from tests.orchestrator.processes import Processes

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Without running statistics, which a forward pass of a step that is given up has changed already.
NET = MLPSettings(widths=(12, 8, 10), normalization="layer")
CASES = {
    "local": Case(Local(), NET),
    "backprop": Case(Backprop(), NET),
    "bll": Case(BLL(feedback=FeedbackSettings(delay=2)), NET),
    "bll, not delayed": Case(BLL(feedback=FeedbackSettings(delay=0)), NET),
}


@pytest.fixture(autouse=True)
def _a_step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.stream.CHUNK_SECONDS", 0.0)


def engine_of(case: Case) -> tuple[SequentialEngine, Batches]:
    program, _, blocks = case.build()
    batches = Batches(
        case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment
    )
    return SequentialEngine(program, blocks), batches


def copied(engine: SequentialEngine) -> State:
    return {
        name: {n: t.detach().clone() for n, t in tensors.items()}
        for name, tensors in engine.state_dict().items()
    }


def states(case: Case) -> Iterator[State]:
    """What every learner has learnt before each step of an undisturbed run."""
    engine, batches = engine_of(case)
    for step in range(STEPS):
        yield copied(engine)
        engine.train_step(step, batches.shard)


def expected(case: Case, incident: Incident) -> State:
    """The end of a run that goes on from where the incident left each learner."""
    before = list(states(case))
    engine, batches = engine_of(case)
    for name, learner in engine.learners.items():
        at = incident.kept[name] + 1 if name in incident.kept else incident.restored
        learnt = {n: t for n, t in before[at][name].items() if not n.startswith("sent.")}
        learner.load_state_dict(learnt)
    _send_tables(engine, engine.program, incident.resumed)
    for step in range(incident.resumed, STEPS):
        engine.train_step(step, batches.shard)
    return copied(engine)


def _send_tables(engine: SequentialEngine, program: Program, step: int) -> None:
    for earlier in range(max(0, step - program.feedback_delay), step):
        upstream: Message | None = None
        for k in range(program.feedback_modules, 0, -1):
            table, *raw = engine.learners[feedback_name(k)].forward(earlier, upstream)  # pyright: ignore
            engine._post([table])
            upstream = raw[0].message if raw else None


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [n for n, t in left.items() if t.numpy().tobytes() != right[n].numpy().tobytes()]


@pytest.mark.parametrize(
    ("name", "target", "at"),
    [
        ("local", "block2", (Kind.UPDATE, 30)),
        ("local", "block1", (Kind.FORWARD, 12)),
        ("backprop", "block3", (Kind.UPDATE, 40)),
        ("bll", "feedback1", (Kind.FEEDBACK_UPDATE, 30)),
        ("bll, not delayed", "block2", (Kind.UPDATE, 35)),
    ],
)
def test_only_what_was_lost_goes_back(
    name: str, target: str, at: tuple[Kind, int], processes: Processes
) -> None:
    case, settings = CASES[name], RecoverySettings(mode="local")
    with processes.engine(case, 2, "direct", recovery=settings) as engine:
        Fault("SIGKILL", target, at).plant(by_name(engine))
        keeper, events = Keeper(), []
        for event in engine.train(range(STEPS), CALENDAR, keeper):
            keeper.keep(event)
            events.append(event)
    (incident,) = keeper.incidents
    assert [loss.name for loss in incident.losses] == [target]
    assert incident.restored == (25 if at[1] > 25 else 0)
    assert target not in incident.kept and len(incident.kept) == len(by_name(engine)) - 1
    assert at[1] <= max(incident.kept.values()) + 1
    assert at[1] - 2 <= incident.resumed <= at[1] + 5  # the window lets block 1 run ahead
    steps = [e.step for e in told(events) if isinstance(e, StepDone)]
    skipped = set(range(incident.step, incident.resumed))
    assert steps == [step for step in range(STEPS) if step not in skipped]
    (last,) = (e for e in events if isinstance(e, SnapshotTaken) and e.step == STEPS - 1)
    wanted = expected(case, incident)
    assert {n: differing(last.state[n], wanted[n]) for n in wanted} == {n: [] for n in wanted}
    assert "the others kept their progress" in incident.sentence()
    assert incident.record()["action"] == "replaced, others kept"


@pytest.mark.parametrize("rule", [DelayedGradients()])
def test_rules_with_more_under_way_are_refused(rule: Rule) -> None:
    program, _, _ = replace(Case(), rule=rule).build()
    with pytest.raises(UserError, match="mode = local is not possible with this rule"):
        check_local_recovery(program)
