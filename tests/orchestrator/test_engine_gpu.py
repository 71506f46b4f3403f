"""Blocks on GPUs: the same program as on the CPU, up to the rounding of other kernels."""

import pytest
import ray
import torch

from actors.wire import decode, encode
from learning.build import CPU, build_block
from learning.learners.feedback import FeedbackSettings
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop
from learning.settings import SGDSettings
from orchestrator.engine import RayEngine
from orchestrator.events import StepDone
from orchestrator.program import Calendar
from tests.orchestrator.engines import EVALUATION_BATCH, Case, inline_engine, snapshot_of, told

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def ray_with_gpu(ray_cluster: None) -> None:
    """The shared local Ray, which counts the machine's GPUs unless it was told otherwise."""
    if ray.cluster_resources().get("GPU", 0) < 1:
        pytest.skip("Ray has no GPU")


@pytest.mark.parametrize("rule", [Backprop(), BLL()], ids=["backprop", "bll"])
def test_a_block_on_a_gpu_agrees_with_one_on_the_cpu(rule):
    program, _, _ = Case(rule).build()
    message = {"x": torch.randn(16, 2, 6, 6), "y": torch.arange(16) % 4}
    sent = []
    for device in (CPU, torch.device("cuda:0")):
        _, _, blocks = Case(rule).build()
        learner = build_block(program, 1, blocks[0], device)
        on = learner.forward(0, 0, message)
        assert on is not None
        assert on["x"].device.type == device.type
        sent.append(on["x"].cpu())
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
    program, plan, blocks = case.build()
    on_gpu = tuple(block.model_copy(update={"gpus": 0.3}) for block in plan.blocks)
    engine = RayEngine(
        program,
        plan.model_copy(update={"blocks": on_gpu}),
        blocks,
        case.data,
        case.augment,
        evaluation_batch=EVALUATION_BATCH,
        threads=1,
        window=2,
    )
    try:
        events = told(engine.train(range(5), calendar))
    finally:
        engine.close()
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
