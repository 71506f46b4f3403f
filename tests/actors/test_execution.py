"""Executors run their operations in order, say what they took, and send what learners say."""

from __future__ import annotations

import threading

import torch

from actors import wire
from actors.execution import Executor
from actors.executors import BlockExecutor, FeedbackExecutor, Source, SourceExecutor
from actors.mailbox import Mailbox
from actors.operations import Kind, Operation, Report
from learning.build import Program, build_block, build_feedback
from learning.data import Batches
from learning.learners.feedback import FeedbackSettings
from learning.messages import Key, Message
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop
from orchestrator.program import Calendar, block_program, feedback_program, source_program
from tests.orchestrator.engines import BATCH, EVALUATION_BATCH, Case, inline_engine

CALENDAR = Calendar({2: ("validation",)}, frozenset({2}), {"validation": 2})
NETWORK = MLPSettings(widths=(6,))


class Wire:
    """A channel that keeps what is sent, and delivers it where it has a mailbox."""

    def __init__(self, mailbox: Mailbox | None = None, blocks: int = 0) -> None:
        self.mailbox, self.keys, self.blocked_ns = mailbox, list[Key](), 0
        self.is_blocked = False
        self._blocks = blocks

    def send(self, key: Key, message: Message) -> int:
        self.keys.append(key)
        self.blocked_ns += self._blocks
        if self.mailbox is not None:
            self.mailbox.put(key, message)
        return sum(t.nbytes for t in message.values())

    def close(self) -> None:
        """Nothing to let go of."""


class Pair:
    """Two blocks, their feedback module and the source, in one thread."""

    def __init__(self, rule: BLL | Backprop) -> None:
        self.case = Case(rule, NETWORK, ("head",), shards=2, steps=9)
        self.program, _, units = self.case.build()
        case, program = self.case, self.program
        batches = Batches(
            case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment
        )
        self.source = SourceExecutor(Source(batches, EVALUATION_BATCH), Mailbox(), 1)
        self.first, self.second = (
            BlockExecutor(build_block(program, k, u), program.feedback_delay, Mailbox(), 1)
            for k, u in enumerate(units, start=1)
        )
        self.source.channels = {"block1": Wire(self.first.mailbox)}
        self.first.channels = {"block2": Wire(self.second.mailbox)}
        self.second.channels = {"block1": Wire(self.first.mailbox)}
        if program.feedback_modules:
            learner = build_feedback(program, 1)
            self.feedback = FeedbackExecutor(learner, top=True, mailbox=Mailbox(), threads=1)
            self.feedback.channels = {"block1": Wire(self.first.mailbox)}
            self.first.channels = {**self.first.channels, "feedback1": Wire(self.feedback.mailbox)}

    def run(self, program: Program, steps: range) -> dict[str, Report]:
        """Run local rules actor after actor: nothing comes back from the second block."""
        reports = {"source": self.source.run(source_program(program, CALENDAR, steps))}
        for step in steps:
            now = range(step, step + 1)
            tables, *rest = feedback_program(program, CALENDAR, now)
            self.feedback.run([tables])
            reports["block1"] = self.first.run(block_program(program, 1, CALENDAR, now))
            reports["feedback1"] = self.feedback.run(rest)
            reports["block2"] = self.second.run(block_program(program, 2, CALENDAR, now))
        return reports


def test_spans_name_every_operation_in_order() -> None:
    pair = Pair(BLL())
    reports = pair.run(pair.program, range(3))
    operations = block_program(pair.program, 1, CALENDAR, range(2, 3))
    spans = reports["block1"].spans
    assert [(s.kind, s.step, s.shard) for s in spans] == [
        (op.kind.value, op.step, op.shard) for op in operations
    ]
    assert [s.kind for s in spans] == ["F", "L", "F", "L", "U", "E", "E", "T", "S"]
    for span, after in zip(spans, [*spans[1:], None], strict=True):
        assert span.started <= span.ended
        assert after is None or span.ended <= after.started
        assert span.waited == span.blocked == 0


def test_reports_hold_metrics_evaluations_snapshots_and_bytes() -> None:
    pair = Pair(BLL())
    report = pair.run(pair.program, range(3))["block1"]
    assert list(report.steps) == [2]
    assert report.steps[2].keys() == {"loss", "accuracy"}
    assert [(step, split) for step, split, _ in report.evaluations] == [(2, "validation")]
    floats = 2 * 8 * 6 + 2 * 8 * 6 + 2 * 8 * 6  # x twice, readout twice, two evaluation batches
    labels = 16 + 16 + 16
    assert report.bytes_sent == 4 * floats + 8 * labels
    learner = pair.first.learner
    snapshot = wire.decode(report.snapshots[2], torch.device("cpu"))
    state = learner.state_dict()
    assert snapshot.keys() == state.keys()
    assert all(torch.equal(snapshot[name], tensor) for name, tensor in state.items())
    assert not any(snapshot[n].data_ptr() == t.data_ptr() for n, t in state.items() if t.numel())
    assert pair.first.run([]).bytes_sent == 0  # a report is of one chunk


def test_executors_compute_what_the_sequential_engine_computes() -> None:
    pair = Pair(BLL(feedback=FeedbackSettings(delay=2)))
    pair.run(pair.program, range(3))
    with inline_engine(pair.case) as engine:
        list(engine.train(range(3), CALENDAR))
        expected = engine._engine.state_dict()
    for name, executor in (("block1", pair.first), ("block2", pair.second)):
        for key, tensor in executor.learner.state_dict().items():
            assert torch.equal(tensor, expected[name][key]), (name, key)
    for key, tensor in pair.feedback.learner.state_dict().items():
        assert torch.equal(tensor, expected["feedback1"][key]), key


def test_gradients_go_back_by_shard_and_origin() -> None:
    pair = Pair(Backprop())
    program = pair.program
    pair.source.run(source_program(program, CALENDAR, range(1)))
    forward, backward = (
        [op for op in block_program(program, 1, CALENDAR, range(1)) if (op.kind is kind) == here]
        for kind, here in ((Kind.FORWARD, True), (Kind.FORWARD, False))
    )
    pair.first.run(forward)
    pair.second.run(block_program(program, 2, CALENDAR, range(1)))
    assert pair.second.channels["block1"].keys == [
        Key("g", 0, 0, origin=2),
        Key("g", 0, 1, origin=2),
    ]
    assert [op.kind.value for op in backward] == ["G", "G", "U"]
    assert pair.first.run(backward).steps == {0: {}}
    assert pair.first.learner.updater.optimizer.state  # it did learn


def test_waiting_for_a_message_and_for_room_are_told_apart() -> None:
    class Late(Mailbox):
        """Delivers only once its owner waits."""

        def __init__(self) -> None:
            super().__init__()
            wait_for = self._changed.wait_for

            def watched(predicate):
                waiting.set()
                return wait_for(predicate)

            self._changed.wait_for = watched  # type: ignore[method-assign]

    waiting = threading.Event()
    pair = Pair(Backprop())
    x, y = pair.source.source.batches.shard(0, 0)
    executor: Executor = pair.first
    executor.mailbox = mailbox = Late()
    executor.channels = {"block2": Wire(blocks=123)}

    def deliver() -> None:
        assert waiting.wait(300)
        mailbox.put(Key("x", 0, 0), {"x": x, "y": y})

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    (late,) = executor.run([Operation(Kind.FORWARD, 0, 0)]).spans
    thread.join(300)
    assert 0 < late.waited <= late.ended - late.started
    assert late.blocked == 123
    mailbox.put(Key("x", 0, 1), {"x": x, "y": y})
    (early,) = executor.run([Operation(Kind.FORWARD, 0, 1)]).spans
    assert (early.waited, early.blocked) == (0, 123)


def test_tables_under_way_are_sent_again_after_a_load() -> None:
    """With a delay of 2, steps 3 and 4 use the tables of steps 1 and 2."""
    pair = Pair(BLL(feedback=FeedbackSettings(delay=2)))
    report = pair.run(pair.program, range(3))
    fresh = Pair(BLL(feedback=FeedbackSettings(delay=2)))
    fresh.feedback.load(wire.decode(report["feedback1"].snapshots[2], torch.device("cpu")), 3)
    assert fresh.feedback.channels["block1"].keys == [Key("table", 1), Key("table", 2)]
    for key in fresh.feedback.channels["block1"].keys:
        again, first = fresh.first.mailbox.take(key), pair.first.mailbox.take(key)
        assert again.keys() == first.keys() == {"b", "c"}
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_lockstep_sends_no_table_again() -> None:
    pair = Pair(BLL(feedback=FeedbackSettings(delay=0)))
    report = pair.run(pair.program, range(3))
    fresh = Pair(BLL(feedback=FeedbackSettings(delay=0)))
    fresh.feedback.load(wire.decode(report["feedback1"].snapshots[2], torch.device("cpu")), 3)
    assert fresh.feedback.channels["block1"].keys == []
