"""Blocks on GPUs: the same program as on the CPU, up to the rounding of other kernels."""

import pytest
import torch

from learning.build import CPU, build_block
from learning.rules import BLL, Backprop
from tests.orchestrator.engines import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


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
