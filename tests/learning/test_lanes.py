"""Lanes: however many share a step's shards, and when they come and go, no bit changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learning.build import Program
from learning.checks import check_lanes
from learning.errors import UserError
from learning.lanes import LaneEngine
from learning.learners.feedback import FeedbackSettings
from learning.objectives.heads import HeadSettings
from learning.objectives.readout import LatentSettings
from learning.rules import (
    BLL,
    Alignment,
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
    Rule,
    TargetAlignment,
)
from learning.rules.bll import BootstrapSettings
from learning.sequential import Metrics, SequentialEngine, ShardOf
from learning.settings import (
    AdamWSettings,
    BFloat16CodecSettings,
    Int8CodecSettings,
    PrecisionSettings,
    SGDSettings,
    UpdateSettings,
)
from learning.units import Chain, split, units_of
from tests.learning.helpers import (
    State,
    assert_same_state,
    convnet,
    learner_settings,
    mlp,
    shards_of,
    snapshot,
)

BATCH, STEPS = 20, 5
CONV = HeadSettings(kind="conv", width=4)
SINGLE = PrecisionSettings()
CLIPPED = SGDSettings(lr=0.1, momentum=0.9, clip=0.2)
ADAMW = AdamWSettings(lr=0.01, clip=0.1)
BLL_AUTO = BLL(latent=LatentSettings(kind="gaussian-learned"))
RULES: dict[str, Rule] = {
    "backprop": Backprop(),
    "local": Local(head=CONV),
    "interlocking": Interlocking(reach=2, head=CONV),
    "bll": BLL_AUTO,
    "ccl": CounterCurrentLearning(),
    "bll, direct, bootstrap": BLL(
        feedback=FeedbackSettings(kind="direct", delay=1, hidden=4),
        bootstrap=BootstrapSettings(share=0.5, until=0.9),
        candidates="batch",
    ),
    "overlapping": Overlapping(),
    "backlink": BackLink(units=1),
    "guided": PeriodicGuidance(period=3, guided=1, head=CONV),
    "man": MomentumAuxiliary(momentum=0.5),
    "reconcile": Reconciliation(warmup=0, head=CONV),
    "alignment": Alignment(),
    "dfa": DirectAlignment(),
    "drtp": TargetAlignment(),
    "infopro": InfoPro(head=CONV),
    "neuron groups": NeuronGroups(),
}
MAIN = ["backprop", "local", "interlocking", "bll"]


def program_of(
    rule: Rule,
    model: nn.Sequential | None = None,
    at: tuple[str, ...] = ("1.0", "2.0"),
    *,
    shape: tuple[int, ...] = (4,),
    **some: Any,
) -> tuple[Program, list]:
    """A program in float32, for batches of 20, and its blocks: three with batch norm, dropout."""
    model = mlp(0, norm=True, dropout=0.2) if model is None else copy.deepcopy(model)
    blocks = split(units_of(model), at)
    shapes, h = [], torch.zeros(2, *shape)
    for block in blocks:
        with torch.no_grad():
            h = Chain(copy.deepcopy(block)).eval()(h)
        shapes.append(tuple(h.shape[1:]))
    own = {"batch": BATCH, "precision": SINGLE, "optimizer": CLIPPED, "steps": STEPS} | some
    return Program(rule, learner_settings(**own), tuple(shapes), 3, shape), blocks


def data(shards: int, shape: tuple[int, ...] = (4,)) -> ShardOf:
    make = shards_of(shards, batch=BATCH, shape=shape)

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, y = make(step, shard)
        return x.float(), y

    return shard_of


def alone(rule: Rule, shards: int, **some: Any) -> tuple[State, list[Metrics]]:
    """The end and the metrics of the sequential engine."""
    program, blocks = program_of(rule, shards=shards, **some)
    engine, shard_of = SequentialEngine(program, blocks), data(shards, program.input_shape)
    metrics = [engine.train_step(step, shard_of) for step in range(STEPS)]
    return snapshot(engine), metrics


def assert_same_as_alone(
    rule: Rule, shards: int, numbers: list[int], *, ahead: int = 0, **some: Any
) -> None:
    """Train with `numbers[t]` lanes at step t and compare all lanes with the sequential engine."""
    program, blocks = program_of(rule, shards=shards, **some)
    check_lanes(program, max(numbers))
    engine = LaneEngine(program, blocks, numbers[0], ahead=ahead)
    shard_of = data(shards, program.input_shape)
    metrics = []
    for step, lanes in enumerate(numbers):
        engine.resize(lanes, step)
        metrics.append(engine.train_step(step, shard_of))
    expected, told = alone(rule, shards, **some)
    assert metrics == told
    for lane in engine.lanes:
        assert_same_state(snapshot(lane), expected)


@pytest.mark.parametrize("optimizer", [CLIPPED, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shards", [4, 5])
@pytest.mark.parametrize("rule", MAIN)
def test_the_number_of_lanes_changes_no_bit(rule, shards, optimizer):
    for lanes in (1, 2, 3):
        assert_same_as_alone(RULES[rule], shards, [lanes] * STEPS, optimizer=optimizer)


@pytest.mark.parametrize("rule", RULES)
def test_lanes_come_and_go(rule):
    assert_same_as_alone(RULES[rule], 5, [2, 3, 1, 4, 2], optimizer=ADAMW)


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("rule", ["backprop", "interlocking", "bll"])
def test_forwards_that_run_ahead_change_no_bit(rule, ahead):
    """As under 1f1b and gpipe: several shards' statistics are taken before any backward."""
    assert_same_as_alone(RULES[rule], 5, [1, 2, 2, 3, 1], ahead=ahead)


@pytest.mark.parametrize(
    "some",
    [
        {"update": UpdateSettings(proximal=0.5)},
        {"codec": Int8CodecSettings()},
        {"codec": BFloat16CodecSettings(), "precision": PrecisionSettings(compute="bfloat16")},
        {"precision": PrecisionSettings(compute="float64")},
    ],
    ids=["proximal", "int8", "bfloat16", "float64"],
)
def test_policies_change_nothing_about_that(some):
    assert_same_as_alone(RULES["backprop"], 5, [2, 3, 1, 2, 2], **some)


def test_compiled_blocks_end_alike_too():
    """One small block: every lane compiles for itself."""
    some = {"model": mlp(0, norm=True)[:1], "at": (), "shards": 2}
    program, blocks = program_of(
        Backprop(), precision=PrecisionSettings(compile="inductor"), **some
    )
    one, two = SequentialEngine(program, copy.deepcopy(blocks)), LaneEngine(program, blocks, 2)
    for step in range(3):
        assert one.train_step(step, data(2)) == two.train_step(step, data(2))
    for lane in two.lanes:
        assert_same_state(snapshot(lane), snapshot(one))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("rule", ["backprop", "reconcile", "bll", "man"])
def test_images_in_any_layout(rule, layout):
    """Norms are added up in the order of memory, which messages do not keep."""
    assert_same_as_alone(
        RULES[rule],
        5,
        [2, 3, 1, 2, 2],
        model=convnet(0),
        at=("1", "2.1"),
        shape=(2, 4, 4),
        precision=PrecisionSettings(memory_format=layout),
    )


@settings(max_examples=15)
@given(st.data(), st.sampled_from(MAIN), st.integers(2, 4))
def test_which_lane_has_which_shard_changes_no_bit(drawn, rule: str, lanes: int):
    shards = 5
    program, blocks = program_of(RULES[rule], shards=shards)
    engine, metrics = LaneEngine(program, blocks, lanes), []
    for step in range(STEPS):
        owners = drawn.draw(st.lists(st.integers(0, lanes - 1), min_size=5, max_size=5))
        of_lanes = [[s for s in range(shards) if owners[s] == lane] for lane in range(lanes)]
        metrics.append(engine.train_step(step, data(shards), of_lanes))
    expected, told = alone(RULES[rule], shards)
    assert metrics == told
    for lane in engine.lanes:
        assert_same_state(snapshot(lane), expected)


def test_lanes_evaluate_with_the_buffers_of_all():
    program, blocks = program_of(Local(head=CONV), shards=4)
    engine = LaneEngine(program, blocks, 2)
    other = SequentialEngine(*program_of(Local(head=CONV), shards=4))
    for step in range(3):
        engine.train_step(step, data(4))
        other.train_step(step, data(4))
    batches = [data(1)(9, 0)]
    expected = other.evaluate(2, "test", iter(batches))
    assert engine.evaluate(2, "test", iter(batches)) == expected
    for lane in engine.lanes:
        assert lane.evaluate(2, "test", iter(batches)) == expected


def test_a_state_loaded_amidst_a_step_leaves_nothing_of_it():
    """Recovery rolls learners back wherever they are."""
    for rule in (RULES["bll"], RULES["reconcile"], RULES["backprop"]):
        engine = SequentialEngine(*program_of(rule, shards=4))
        other = SequentialEngine(*program_of(rule, shards=4))
        for one in (engine, other):
            one.train_step(0, data(4))
        state = snapshot(engine)
        engine.tell(1)
        for shard in (0, 1):
            engine.forward(1, shard, *data(4)(1, shard))
        engine.backward(1, 0)
        engine.load_state_dict(state, 1)
        assert engine.train_step(1, data(4)) == other.train_step(1, data(4))
        assert_same_state(snapshot(engine), snapshot(other))


REFUSED: list[tuple[Rule, dict[str, Any], int, str]] = [
    (Local(), {"update": UpdateSettings(fused=True), "shards": 1}, 2, r"update.fused = false or"),
    (PredSim(), {"shards": 1}, 3, r"all samples of a batch: use lanes.max = 1"),
    (InfoPro(contrast="supcon"), {"shards": 1}, 2, r"all samples of a batch: use lanes.max = 1"),
    (DelayedGradients(), {}, 2, r"keeps its shards until gradients come in a later step: use"),
    (ReplayedLocal(buffer=3), {}, 2, r"rule.buffer = 3 is of the whole run: use lanes.max = 1"),
    (
        Local(),
        {"precision": PrecisionSettings(compile="cuda-graphs"), "shards": 1},
        2,
        r"cuda-graphs has memory for one: use precision.compile = inductor or none",
    ),
    (Local(), {"shards": 4}, 5, r"use training.shards = 5 or more, or lanes.max = 4"),
]


@pytest.mark.parametrize(("rule", "some", "lanes", "sentence"), REFUSED)
def test_what_lanes_cannot_share_is_refused(rule, some, lanes, sentence):
    program, _ = program_of(Local(), **({"shards": 4} | some))
    program = replace(program, rule=rule)
    check_lanes(program, 1)
    with pytest.raises(UserError, match=rf"^lanes.max = {lanes}: .*{sentence}"):
        check_lanes(program, lanes)


def test_a_delay_of_nothing_is_not_refused():
    assert_same_as_alone(DelayedGradients(lag=0), 4, [2] * STEPS)
