"""The Ray engine ends with the bits of the sequential engine, also when it is resumed.

Every rule with and without batch normalisation; dropout, shards, precisions, windows and kinds of
network are spread over these cases. Starting an actor is what takes the time, so the same processes
serve all cases, and the actors of an undisturbed run are those of the resumed one too, but where
tables are under way at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import ray
import torch

from learning.learners.feedback import FeedbackSettings
from learning.networks import MLPSettings, ResNetSettings, ViTSettings
from learning.objectives.heads import HeadSettings
from learning.objectives.readout import LatentSettings
from learning.rules import (
    BLL,
    Alignment,
    AugLocal,
    BackLink,
    Backprop,
    CounterCurrentLearning,
    DelayedGradients,
    DirectAlignment,
    InfoPro,
    Interlocking,
    Local,
    MomentumAuxiliary,
    NeuronGroups,
    Overlapping,
    PeriodicGuidance,
    PredSim,
    Reconciliation,
    ReplayedLocal,
    SharedUnembedding,
    TargetAlignment,
)
from learning.rules.bll import BootstrapSettings
from learning.settings import (
    AdamWSettings,
    BFloat16CodecSettings,
    Int8CodecSettings,
    PrecisionSettings,
    SGDSettings,
    UpdateSettings,
)
from orchestrator.engine import RayEngine
from orchestrator.events import Evaluated, SnapshotTaken, StepDone
from orchestrator.settings import Transport
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    Told,
    differences,
    handles,
    inline_engine,
    ray_engine,
    snapshot_of,
    told,
)
from tests.orchestrator.processes import Processes

BOOTSTRAP = BootstrapSettings(share=0.5, until=0.8)
PLAIN = MLPSettings(widths=(12, 8, 10), normalization="none")
PLAIN_DROPOUT = MLPSettings(widths=(12, 8, 10), normalization="none", dropout=0.2)
DROPOUT = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)
BATCH_NORM = MLPSettings(widths=(12, 8, 10), normalization="batch")
RESNET = ResNetSettings(widths=(4, 6), depths=1)  # with batch normalisation
VIT = ViTSettings(patch=3, width=8, heads=2, depth=3)
SOLO = SharedUnembedding(heads=2, causal=False, every=4)
TWO = ("layer2",)  # a cut into two blocks; the chain of feedback modules needs three
SGD = SGDSettings(lr=0.05)
FLOAT64 = PrecisionSettings(compute="float64")
BFLOAT16 = PrecisionSettings(compute="bfloat16", memory_format="channels-last")
NO_DELAY = BLL(feedback=FeedbackSettings(delay=0), bootstrap=BOOTSTRAP)
AUTO_DELAY = BLL(feedback=FeedbackSettings(hidden=5), bootstrap=BOOTSTRAP)
DIRECT = BLL(
    latent=LatentSettings(kind="gaussian-learned"),
    feedback=FeedbackSettings(kind="direct", optimizer=AdamWSettings(lr=0.02)),
    bootstrap=BOOTSTRAP,
)
INT8 = Int8CodecSettings()
PROXIMAL = UpdateSettings(proximal=1.0)
CONV = Local(head=HeadSettings(kind="conv", width=4, pool=3))

CASES = {
    "backprop, batch norm": Case(Backprop(order="gpipe"), DROPOUT, at=TWO, shards=4),
    "backprop, no norm": Case(Backprop(order="1f1b"), PLAIN, at=TWO, shards=4, optimizer=SGD),
    "local, batch norm": Case(CONV, RESNET, at=TWO, shards=2, optimizer=SGD),
    "local, no norm": Case(Local(), PLAIN, at=TWO, precision=FLOAT64),
    "interlocking, batch norm": Case(Interlocking(), DROPOUT, shards=2),
    "bll, delay 0, batch norm": Case(NO_DELAY, DROPOUT),
    "bll, delay 0, no norm": Case(NO_DELAY, PLAIN, shards=2),
    "bll, delay auto, batch norm": Case(AUTO_DELAY, BATCH_NORM),
    "bll, delay auto, no norm": Case(AUTO_DELAY, PLAIN_DROPOUT),
    "bll, direct, batch norm": Case(DIRECT, RESNET, at=TWO, shards=2, precision=BFLOAT16),
    "bll, direct, no norm": Case(DIRECT, PLAIN, at=TWO),
    "overlapping, batch norm": Case(Overlapping(weight=0.5), DROPOUT, shards=2),
    "backlink, batch norm": Case(BackLink(), BATCH_NORM, at=("layer3",)),
    "guided, batch norm": Case(PeriodicGuidance(period=3), BATCH_NORM, shards=2),
    "reconcile, batch norm": Case(Reconciliation(head=CONV.head), RESNET, at=TWO, shards=2),
    "reconcile, squared, no norm": Case(Reconciliation(distance="squared"), PLAIN_DROPOUT),
    "delayed, weights, batch norm": Case(DelayedGradients(lag=2), DROPOUT, shards=2),
    "delayed, inputs, batch norm": Case(DelayedGradients(stash="inputs"), DROPOUT, shards=2),
    "delayed, compensated, no norm": Case(DelayedGradients(compensation=0.5), PLAIN),
    "replay, batch norm": Case(ReplayedLocal(buffer=3), DROPOUT, shards=2),
    "alignment, batch norm": Case(Alignment(), RESNET, at=TWO, shards=2),
    "alignment, sign-symmetric, no norm": Case(Alignment(map="sign-symmetric"), PLAIN),
    "dfa, batch norm": Case(DirectAlignment(), RESNET, at=("layer1", "layer2"), shards=2),
    "drtp, batch norm": Case(TargetAlignment(), BATCH_NORM, shards=2),
    "predsim, batch norm": Case(PredSim(dim=16), RESNET, at=TWO),
    "infopro, batch norm": Case(InfoPro(), RESNET, at=("layer1", "layer2"), shards=2),
    "auglocal, batch norm": Case(AugLocal(), RESNET, at=("layer1", "layer2"), shards=2),
    "neuron-groups, batch norm": Case(NeuronGroups(groups=3), DROPOUT, shards=2),
    "man, batch norm": Case(MomentumAuxiliary(momentum=0.9, every=3), DROPOUT, shards=2),
    "solo, batch norm": Case(SOLO, VIT, at=("block2", "block3"), shards=2),  # has none
    "ccl, batch norm": Case(CounterCurrentLearning(), BATCH_NORM),
    "bll, candidates of the batch, no norm": Case(
        BLL(candidates="batch"), VIT, at=("block2", "block3"), shards=2
    ),
    "interlocking, int8, batch norm": Case(Interlocking(), RESNET, shards=2, at=TWO, codec=INT8),
    "delayed, bfloat16, proximal, batch norm": Case(
        DelayedGradients(), BATCH_NORM, shards=2, codec=BFloat16CodecSettings(), update=PROXIMAL
    ),
    "local, fused, batch norm": Case(Local(), DROPOUT, at=TWO, update=UpdateSettings(fused=True)),
}
WINDOWS = {name: (1, 4, 2, 3)[i % 4] for i, name in enumerate(CASES)}
# Every kind of message: activations, gradients, tables, readouts, errors, images, weights.
DIRECT_TRANSPORT = [
    "backprop, batch norm",
    "backprop, no norm",
    "local, batch norm",
    "interlocking, int8, batch norm",
    "bll, delay auto, batch norm",
    "bll, direct, batch norm",
    "delayed, bfloat16, proximal, batch norm",
    "dfa, batch norm",
    "infopro, batch norm",
    "man, batch norm",
]
# All others make their batches in block 1's actor.
SOURCE_ACTOR: dict[str, Transport] = {
    "backprop, batch norm": "direct",
    "interlocking, batch norm": "object_store",
}
RESUMED = [name for name in CASES if name.endswith("batch norm")]
BY_OTHERS = {"bll, delay auto, batch norm": 4, "bll, direct, batch norm": 1}  # to other windows


class Runs(NamedTuple):
    """What the Ray engine said from step 0 on and, where it was resumed, from step 25 on."""

    undisturbed: list[Told]
    resumed: list[Told]


@cache
def sequential(name: str) -> list[Told]:
    """The undisturbed run of a case in the sequential engine."""
    with inline_engine(CASES[name]) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


@pytest.fixture(scope="module")
def on_ray(processes: Processes) -> Callable[[str], Runs]:
    """The run of a case in the Ray engine, then its second half from the snapshot half way."""

    @cache
    def run(name: str) -> Runs:
        with processes.engine(CASES[name], WINDOWS[name]) as engine:
            undisturbed = told(engine.train(range(STEPS), CALENDAR))
            resumed = []
            if name in RESUMED and name not in BY_OTHERS:  # the actors' state is that of the end
                resumed = second_run(engine, undisturbed)
        if name in BY_OTHERS:
            with ray_engine(CASES[name], BY_OTHERS[name]) as engine:
                resumed = second_run(engine, undisturbed)
        return Runs(undisturbed, resumed)

    return run


def second_run(engine: RayEngine, before: list[Told]) -> list[Told]:
    """Go on at step 25 from a run's snapshot."""
    engine.load(snapshot_of(before, 24).state, 25)
    return told(engine.train(range(25, STEPS), CALENDAR))


def second_half(events: list[Told]) -> list[Told]:
    return [event for event in events if event.step > 24]


@pytest.mark.parametrize("name", CASES)
def test_ray_engine_ends_with_the_bits_of_the_sequential_engine(
    name: str, on_ray: Callable[[str], Runs]
) -> None:
    assert differences(on_ray(name).undisturbed, sequential(name)) == []


@pytest.mark.parametrize("name", DIRECT_TRANSPORT)
def test_direct_transport_ends_with_the_same_bits_also_when_resumed(
    name: str, processes: Processes
) -> None:
    with processes.engine(CASES[name], WINDOWS[name], "direct") as engine:
        undisturbed = told(engine.train(range(STEPS), CALENDAR))
        # By the same actors, but where tables are under way at the end: those go to new ones.
        again = name in RESUMED and name not in BY_OTHERS
        resumed = second_run(engine, undisturbed) if again else None
    assert differences(undisturbed, sequential(name)) == []
    if name in BY_OTHERS:
        with ray_engine(CASES[name], WINDOWS[name], "direct") as engine:
            resumed = second_run(engine, undisturbed)
    if resumed is not None:
        assert differences(resumed, second_half(sequential(name))) == []


@pytest.mark.parametrize(("name", "transport"), SOURCE_ACTOR.items())
def test_batches_of_a_source_of_its_own_end_with_the_same_bits_also_when_resumed(
    name: str, transport: Transport, processes: Processes
) -> None:
    with processes.engine(CASES[name], WINDOWS[name], transport, "actor") as engine:
        undisturbed = told(engine.train(range(STEPS), CALENDAR))
        resumed = second_run(engine, undisturbed)
    assert differences(undisturbed, sequential(name)) == []
    assert differences(resumed, second_half(sequential(name))) == []


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    name: str, on_ray: Callable[[str], Runs]
) -> None:
    assert differences(on_ray(name).resumed, second_half(sequential(name))) == []


def test_one_flipped_bit_of_one_message_is_found(processes: Processes) -> None:
    """Block 2 gets one input wrong by one bit: it ends elsewhere, and block 1 does not notice."""
    case = Case(Local(), PLAIN, at=("layer2",), shards=2)

    def flip(shell: Any) -> None:
        from actors.mailbox import Mailbox
        from learning.messages import Key

        class Flipping(Mailbox):
            def put(self, key: Key, message: dict[str, torch.Tensor], taken: Any = None) -> None:
                if key == Key("x", 30, 1):
                    x = message["x"].clone()
                    x.view(torch.int32).flatten()[x.argmax()] ^= 1
                    message = {**message, "x": x}
                super().put(key, message, taken)

        shell._executor.mailbox = Flipping()

    with inline_engine(case) as engine:
        expected = told(engine.train(range(STEPS), CALENDAR))
    rest = second_half(expected)
    with processes.engine(case) as engine:
        assert differences(second_run(engine, expected), rest) == []
        ray.get(handles(engine)["block2"].__ray_call__.remote(flip))
        flipped = second_run(engine, expected)
    found = differences(flipped, rest)
    assert found
    assert not [line for line in found if "block1/" in line]
    ends = [snapshot_of(events, STEPS - 1).state for events in (flipped, rest)]
    assert _equal(ends[0]["block1"], ends[1]["block1"])
    assert not _equal(ends[0]["block2"], ends[1]["block2"])
    before = [event for event in flipped if event.step < 30]
    assert differences(before, rest[: len(before)]) == []


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("name", ["bll, delay auto, batch norm", "local, batch norm"])
def test_comparison_tells_seeds_apart(name: str) -> None:
    """The comparison above can fail: another seed changes every kind of state and event."""
    with inline_engine(CASES[name].with_seed(1)) as engine:
        other = told(engine.train(range(STEPS), CALENDAR))
    found = differences(other, sequential(name))
    for what in ("StepDone 0:", "Evaluated 49:", "/model.", "/optimizer."):
        assert any(what in line for line in found), what
    if name.startswith("bll"):
        for what in ("/auxiliary.", "/feedback.", "/sent."):
            assert any(what in line for line in found), what


def test_runs_tell_everything() -> None:
    """What is compared is complete: every step, evaluation, learner and kind of state."""
    events = sequential("bll, delay auto, batch norm")
    assert Counter(type(event) for event in events) == {
        StepDone: 50,
        Evaluated: 4,
        SnapshotTaken: 2,
    }
    learners = ["block1", "block2", "block3", "feedback1", "feedback2"]
    for step in (24, 49):
        assert sorted(snapshot_of(events, step).state) == learners
    state = snapshot_of(events, 49).state
    kinds = {name.split(".")[0] for name in state["block1"]}
    assert kinds == {"model", "flags", "auxiliary", "optimizer"}
    kinds = {name.split(".")[0] for name in state["feedback1"]}
    assert kinds == {"feedback", "optimizer", "sent"}
    losses = [e.metrics["block3"]["loss"] for e in events if isinstance(e, StepDone)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # it learns, so the bits are worth comparing
