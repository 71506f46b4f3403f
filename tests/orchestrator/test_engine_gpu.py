"""Blocks on GPUs: the same program as on the CPU, up to the rounding of other kernels."""

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import ray
import torch

from actors.wire import decode, encode
from learning.build import CPU, build_block, build_feedback
from learning.learners.feedback import FeedbackSettings
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop, Local, Rule
from learning.settings import PrecisionSettings, SGDSettings
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import SnapshotTaken, StepDone
from orchestrator.program import Calendar
from tests.orchestrator.engines import (
    EVALUATION_BATCH,
    Case,
    Told,
    differences,
    inline_engine,
    snapshot_of,
    told,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def ray_with_gpu(ray_cluster: None) -> None:
    """The shared local Ray, which counts the machine's GPUs unless it was told otherwise."""
    if ray.cluster_resources().get("GPU", 0) < 1:
        pytest.skip("Ray has no GPU")


GPU = torch.device("cuda:0")
BFLOAT16 = PrecisionSettings(compute="bfloat16")


def on_shares_of_a_gpu(case: Case, gpus: float, steps: range, calendar: Calendar) -> list[Told]:
    """Train with all blocks as actors on one GPU."""
    program, plan, blocks = case.build()
    placed = tuple(block.model_copy(update={"gpus": gpus}) for block in plan.blocks)
    engine = RayEngine(
        Chain(
            program,
            plan.model_copy(update={"blocks": placed}),
            blocks,
            case.data,
            case.augment,
            evaluation_batch=EVALUATION_BATCH,
            threads=1,
            window=2,
        )
    )
    try:
        return told(engine.train(steps, calendar))
    finally:
        engine.close()


def in_one_process_on_a_gpu(case: Case, steps: range, calendar: Calendar) -> list[Told]:
    """Train with the sequential engine, its learners built on the GPU."""
    program, _, blocks = case.build()
    with inline_engine(case) as engine:
        inner = engine._engine
        inner.blocks = [
            build_block(program, k, units, GPU) for k, units in enumerate(blocks, start=1)
        ]
        inner.feedback = {k: build_feedback(program, k, GPU) for k in inner.feedback}
        return [on_the_host(event) for event in told(engine.train(steps, calendar))]


def on_the_host(event: Told) -> Told:
    if not isinstance(event, SnapshotTaken):
        return event
    state = {
        name: {n: t.cpu() for n, t in tensors.items()} for name, tensors in event.state.items()
    }
    return replace(event, state=state)


@pytest.mark.parametrize("rule", [Backprop(), BLL()], ids=["backprop", "bll"])
def test_a_block_on_a_gpu_agrees_with_one_on_the_cpu(rule):
    program, _, _ = Case(rule).build()
    message = {"x": torch.randn(16, 2, 6, 6), "y": torch.arange(16) % 4}
    sent = []
    for device in (CPU, torch.device("cuda:0")):
        _, _, blocks = Case(rule).build()
        learner = build_block(program, 1, blocks[0], device)
        (post,) = learner.forward(0, 0, message)
        assert post.message["x"].device.type == device.type
        sent.append(post.message["x"].cpu())
    torch.testing.assert_close(*sent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_cuda_tensors_survive_the_wire(dtype):
    device = torch.device("cuda:0")
    message = {
        "x": torch.arange(24, device=device).view(2, 3, 4).to(dtype),
        "y": torch.arange(2, device=device),
    }
    arrays = encode(message)
    for target in (device, CPU):
        received = decode(arrays, target)
        assert sorted(received) == ["x", "y"]
        for name, tensor in received.items():
            assert tensor.device.type == target.type
            assert tensor.dtype == message[name].dtype
            assert torch.equal(tensor.cpu(), message[name].cpu())


@pytest.mark.usefixtures("ray_with_gpu")
def test_ray_engine_on_a_gpu_agrees_with_the_sequential_engine():
    """Two blocks and a feedback module on shares of one device, which add up to 0.6."""
    # Plain gradient steps: AdamW turns the rounding of a gradient near 0 into a step of full size.
    sgd = SGDSettings(lr=0.05)
    rule = BLL(feedback=FeedbackSettings(optimizer=sgd))
    network = MLPSettings(widths=(12, 8, 10), normalization="none")
    case = Case(rule, network, at=("layer2",), steps=5, optimizer=sgd)
    calendar = Calendar(snapshots=frozenset({4}))
    with inline_engine(case) as engine:
        expected = told(engine.train(range(5), calendar))
    events = on_shares_of_a_gpu(case, 0.3, range(5), calendar)
    for got, wanted in zip(events, expected, strict=True):
        assert type(got) is type(wanted) and got.step == wanted.step
        if isinstance(got, StepDone) and isinstance(wanted, StepDone):
            for learner, metrics in wanted.metrics.items():
                assert got.metrics[learner]["loss"] == pytest.approx(metrics["loss"], rel=1e-3)
    states = [snapshot_of(e, 4).state for e in (events, expected)]
    for learner in ("block1", "block2", "feedback1"):
        names = [n for n in states[1][learner] if n.startswith(("model.", "feedback."))]
        for name in names:
            torch.testing.assert_close(
                *(state[learner][name] for state in states), rtol=1e-3, atol=1e-5
            )


@pytest.mark.usefixtures("ray_with_gpu")
@pytest.mark.parametrize("precision", [PrecisionSettings(), BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [Local(), Backprop(), BLL()], ids=["local", "backprop", "bll"])
def test_blocks_that_share_a_gpu_end_with_the_bits_of_one_process_on_it(rule, precision):
    """Linear layers and batch norm: kernels that add in a fixed order."""
    case = Case(rule, shards=2, steps=8, precision=precision)
    calendar = Calendar({7: ("validation",)}, frozenset({3, 7}), {"validation": 2})
    expected = in_one_process_on_a_gpu(case, range(8), calendar)
    assert differences(on_shares_of_a_gpu(case, 0.33, range(8), calendar), expected) == []


@pytest.mark.usefixtures("ray_with_gpu")
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
def test_compiled_blocks_on_a_gpu_stay_close_to_the_units_as_written():
    sgd = SGDSettings(lr=0.05)
    precision = PrecisionSettings(compile="inductor")
    case = Case(Local(), at=("layer2",), steps=4, optimizer=sgd, precision=precision)
    calendar = Calendar(snapshots=frozenset({3}))
    ends = [
        snapshot_of(on_shares_of_a_gpu(c, 0.5, range(4), calendar), 3).state
        for c in (case, replace(case, precision=PrecisionSettings()))
    ]
    assert_models_close(ends)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [Local(), Backprop(), BLL()], ids=["local", "backprop", "bll"])
def test_graphs_compute_what_the_units_compute(rule: Rule, compute):
    """Recording leaves parameters and running statistics alone; replaying follows both."""
    ends = []
    for compile in ("none", "cuda-graphs"):
        precision = PrecisionSettings.model_validate({"compute": compute, "compile": compile})
        case = Case(rule, steps=6, optimizer=SGDSettings(lr=0.05), precision=precision)
        calendar = Calendar({5: ("validation",)}, frozenset({5}), {"validation": 2})
        ends.append(snapshot_of(in_one_process_on_a_gpu(case, range(6), calendar), 5).state)
    counts = [n for n in ends[0]["block1"] if n.endswith("num_batches_tracked")]
    assert counts and all(ends[1]["block1"][n] == 6 for n in counts)
    assert_models_close(ends)


def test_messages_arrive_while_a_graph_is_recorded():
    """CUDA forbids other threads to allocate meanwhile: uploads wait until recording is done."""
    precision = PrecisionSettings(compile="cuda-graphs")
    program, _, blocks = Case(Local(), precision=precision).build()
    learner = build_block(program, 1, blocks[0], GPU)
    arrived, enough = [], threading.Event()

    def deliver() -> None:
        # A new size each time: memory has to be allocated on both sides. What arrived is looked at
        # later, because looking would itself be a call that CUDA forbids meanwhile.
        for size in range(1, 4000):
            if enough.is_set():
                return
            array = torch.full((size,), float(size)).numpy()
            arrived.append(decode({"x": array}, GPU)["x"])

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        message = {"x": torch.randn(16, 2, 6, 6), "y": torch.arange(16) % 4}
        for step in range(3):
            learner.forward(step, 0, message)
            learner.assess(step, 0)
            learner.update(step)
    finally:
        enough.set()
        thread.join()
    assert arrived
    for size, tensor in enumerate(arrived, start=1):
        assert torch.equal(tensor.cpu(), torch.full((size,), float(size)))


def assert_models_close(ends: Sequence[dict[str, dict[str, torch.Tensor]]]) -> None:
    for learner in ends[0]:
        for name in (n for n in ends[0][learner] if n.startswith("model.")):
            torch.testing.assert_close(
                ends[0][learner][name], ends[1][learner][name], rtol=1e-3, atol=1e-5
            )
