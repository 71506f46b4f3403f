"""The Ray engine ends with the bits of the sequential engine, also when it is resumed."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import ray
import torch

from learning.feedback import FeedbackSettings
from learning.heads import HeadSettings
from learning.networks import MLPSettings, ResNetSettings
from learning.readout import LatentSettings
from learning.rules import BLL, Backprop, Local
from learning.rules.bll import BootstrapSettings
from learning.settings import AdamWSettings, PrecisionSettings, SGDSettings
from orchestrator.events import Evaluated, Event, SnapshotTaken, StepDone
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    differences,
    handles,
    inline_engine,
    ray_engine,
    snapshot_of,
    told,
)

BOOTSTRAP = BootstrapSettings(share=0.5, until=0.8)
PLAIN = MLPSettings(widths=(12, 8, 10), normalization="none")
DROPOUT = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)
RESNET = ResNetSettings(widths=(4, 6), depths=1)
SGD = SGDSettings(lr=0.05)

CASES = {
    "backprop, gpipe, dropout": Case(Backprop(order="gpipe"), DROPOUT, shards=4),
    "backprop, 1f1b": Case(Backprop(order="1f1b"), shards=4, optimizer=SGD),
    "local, no norm, float64": Case(Local(), PLAIN, precision=PrecisionSettings(compute="float64")),
    "local, conv head": Case(
        Local(head=HeadSettings(kind="conv", width=4, pool=3)),
        RESNET,
        at=("layer1", "layer2"),
        shards=2,
        optimizer=SGD,
    ),
    "bll, delay 0, dropout": Case(
        BLL(feedback=FeedbackSettings(delay=0), bootstrap=BOOTSTRAP), DROPOUT
    ),
    "bll, delay auto": Case(BLL(feedback=FeedbackSettings(hidden=5), bootstrap=BOOTSTRAP)),
    "bll, direct, bfloat16": Case(
        BLL(
            latent=LatentSettings(kind="gaussian-learned"),
            feedback=FeedbackSettings(kind="direct", optimizer=AdamWSettings(lr=0.02)),
            bootstrap=BOOTSTRAP,
        ),
        RESNET,
        at=("layer2",),
        shards=2,
        precision=PrecisionSettings(compute="bfloat16", memory_format="channels-last"),
    ),
}


@cache
def sequential(name: str) -> list[Event]:
    """The undisturbed run of a case in the sequential engine."""
    with inline_engine(CASES[name]) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


@cache
def on_ray(name: str, window: int) -> list[Event]:
    """The undisturbed run of a case in the Ray engine."""
    with ray_engine(CASES[name], window) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "window"), list(zip(CASES, (1, 4, 3, 2, 4, 1, 2), strict=True)), ids=list(CASES)
)
def test_ray_engine_ends_with_the_bits_of_the_sequential_engine(name: str, window: int) -> None:
    assert differences(on_ray(name, window), sequential(name)) == []


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "taken_by", "window"),
    [
        ("bll, delay auto", "ray", 4),
        ("backprop, 1f1b", "sequential", 1),
        ("local, conv head", "sequential", 4),
    ],
)
def test_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    name: str, taken_by: str, window: int
) -> None:
    """The windows differ from those of the undisturbed runs, so they change no bit either."""
    undisturbed = sequential(name)
    before = on_ray(name, 1) if taken_by == "ray" else undisturbed
    with ray_engine(CASES[name], window) as engine:
        engine.load(snapshot_of(before, 24).state, 25)
        resumed = told(engine.train(range(25, STEPS), CALENDAR))
    assert differences(resumed, [event for event in undisturbed if event.step > 24]) == []


@pytest.mark.usefixtures("ray_cluster")
def test_one_flipped_bit_of_one_message_is_found() -> None:
    """Block 2 gets one input wrong by one bit: it ends elsewhere, and block 1 does not notice."""
    case = Case(Local(), PLAIN, at=("layer2",), shards=2)

    def flip(shell: Any) -> None:
        from actors.mailbox import Mailbox
        from actors.operations import Key

        class Flipping(Mailbox):
            def put(self, key: Key, message: dict[str, torch.Tensor]) -> None:
                if key == Key("x", 30, 1):
                    x = message["x"].clone()
                    x.view(torch.int32).flatten()[x.argmax()] ^= 1
                    message = {**message, "x": x}
                super().put(key, message)

        shell._executor.mailbox = Flipping()

    with inline_engine(case) as engine:
        expected = told(engine.train(range(STEPS), CALENDAR))
    with ray_engine(case) as engine:
        assert differences(told(engine.train(range(STEPS), CALENDAR)), expected) == []
        ray.get(handles(engine)["block2"].__ray_call__.remote(flip))
        engine.load(snapshot_of(expected, 24).state, 25)
        flipped = told(engine.train(range(25, STEPS), CALENDAR))
    rest = [event for event in expected if event.step > 24]
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


@pytest.mark.parametrize("name", ["bll, delay auto", "local, conv head"])
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
    events = sequential("bll, delay auto")
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
    assert kinds == {"model", "auxiliary", "optimizer"}
    kinds = {name.split(".")[0] for name in state["feedback1"]}
    assert kinds == {"feedback", "optimizer", "sent"}
    losses = [e.metrics["block3"]["loss"] for e in events if isinstance(e, StepDone)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # it learns, so the bits are worth comparing
