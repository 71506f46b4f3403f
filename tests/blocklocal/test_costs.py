"""Costs against numbers worked out by hand, on a perceptron of 8, 5 and 3 values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blocklocal.compare.costs import Costs, measure_costs
from blocklocal.compare.meters import FlopMeter
from blocklocal.config import make_config
from blocklocal.preparation import Prepared, prepare
from learning.data import arrays_dataset
from learning.rules import RULES

BATCH = 4
FORWARD = BATCH * 5 * 4 + BATCH * 8  # h (4, 5) in float32, y (4,) in int64
SCALARS = 2 * 4  # the sum of the labels' weights; the loss, while it is checked to be finite
LOSS = BATCH * 3 * 4 + BATCH * 8 + SCALARS  # the logarithm of the probabilities, the labels
BACKPROP_FLOPS = (
    2 * (2 * BATCH * 8 * 5)  # block 1: output, gradient of the weight
    + 3 * (2 * BATCH * 5 * 3)  # block 2: output, gradients of weight and input
)


def prepared(rule: dict[str, Any], at: tuple[str, ...] = ("2",), **training: Any) -> Prepared:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 8)).astype(np.float32)
    y = np.arange(20) % 3
    tree = {
        "rule": rule,
        "blocks": {"at": list(at)},
        "training": {"batch": BATCH, "steps": 3, **training},
        "engine": {"kind": "sequential", "resources": {"threads": 1}},
    }
    return prepare(make_config(tree), model=model, dataset=arrays_dataset(x, y, x, y))


def costs(rule: dict[str, Any], **training: Any) -> Costs:
    return measure_costs(prepared(rule, **training))


def test_backprop() -> None:
    found = costs({"kind": "backprop"})
    assert (found.parameters, found.extra_parameters) == (8 * 5 + 5 + 5 * 3 + 3, 0)
    assert found.flops == found.backprop_flops == BACKPROP_FLOPS
    assert found.extra_flops == 0
    assert (found.bytes_forward, found.bytes_back) == (FORWARD, BATCH * 5 * 4)
    assert found.bytes_beside == 0
    # Block 1: the linear layer's input, tanh's output. Block 2: its input.
    assert found.activation_bytes == (BATCH * 8 * 4 + BATCH * 5 * 4, BATCH * 5 * 4 + LOSS)


def test_local() -> None:
    found = costs({"kind": "local", "head": {"kind": "linear"}})
    assert found.extra_parameters == 5 * 3 + 3
    head = 3 * (2 * BATCH * 5 * 3)  # output, gradients of weight and input
    input_of_block_2 = 2 * BATCH * 5 * 3  # not needed any more
    assert found.flops == BACKPROP_FLOPS + head - input_of_block_2
    assert found.extra_flops == pytest.approx(found.flops / BACKPROP_FLOPS - 1)
    assert (found.bytes_forward, found.bytes_back, found.bytes_beside) == (FORWARD, 0, 0)
    backprop = costs({"kind": "backprop"}).activation_bytes
    # The head's input is tanh's output, which is there already.
    assert found.activation_bytes == (backprop[0] + LOSS, backprop[1])


def test_feedback_modules_send_tables_and_read_readouts() -> None:
    found = costs({"kind": "bll"})
    tables = 3 * 5 * 4 + 3 * 4  # b (C, U, 1), c (C,)
    readout = BATCH * 5 * 4 + BATCH * 8  # a (B, U, 1), y
    assert found.bytes_beside == tables + readout
    assert (found.bytes_forward, found.bytes_back) == (FORWARD, 0)
    assert found.extra_parameters == 3 * 5 + 3  # one-hot labels to the table, without bias; c


def test_a_chain_of_feedback_modules_sends_back() -> None:
    found = measure_costs(prepared({"kind": "bll"}, at=("1", "2")))
    assert found.bytes_back == 3 * 5 * 4  # the raw table (C, U, 1), from module 2 to module 1
    assert len(found.activation_bytes) == 3


def test_gradients_of_several_losses_each_travel() -> None:
    found = measure_costs(prepared({"kind": "interlocking", "reach": 3}, at=("1", "2")))
    assert found.bytes_back == 2 * BATCH * 5 * 4
    pairwise = measure_costs(prepared({"kind": "interlocking", "reach": 2}, at=("1", "2")))
    assert pairwise.bytes_back == 2 * BATCH * 5 * 4  # of block 2's loss, and of block 3's


def test_shards_run_one_after_the_other() -> None:
    whole, half = (costs({"kind": "backprop"}, shards=n) for n in (1, 2))
    assert half.flops == whole.flops
    assert (half.bytes_forward, half.bytes_back) == (whole.bytes_forward, whole.bytes_back)
    assert half.activation_bytes[0] == whole.activation_bytes[0] // 2
    assert half.activation_bytes[1] - SCALARS == (whole.activation_bytes[1] - SCALARS) // 2


def test_a_rule_whose_steps_differ_is_averaged_over_its_period() -> None:
    local, backprop = costs({"kind": "local"}), costs({"kind": "backprop"})
    guided = costs({"kind": "guided", "period": 4, "guided": 1})
    assert guided.flops == (backprop.flops + 3 * local.flops) / 4
    assert guided.bytes_back == backprop.bytes_back / 4
    assert guided.extra_parameters == local.extra_parameters


def test_a_delayed_rule_is_measured_when_its_gradients_have_come() -> None:
    delayed, backprop = costs({"kind": "delayed"}), costs({"kind": "backprop"})
    assert (delayed.flops, delayed.bytes_back) == (backprop.flops, backprop.bytes_back)
    assert delayed.activation_bytes[0] > backprop.activation_bytes[0]


def test_the_network_stays_as_it_is() -> None:
    run = prepared({"kind": "bll"})
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    first, second = measure_costs(run), measure_costs(run)
    assert first == second
    assert all(torch.equal(t, before[name]) for name, t in run.model.state_dict().items())


KINDS = {rule.model_fields["kind"].default for rule in RULES}


@pytest.mark.parametrize("kind", sorted(KINDS - {"solo"}))  # that one reads tokens
def test_every_rule_can_be_counted(kind: str) -> None:
    run = prepared({"kind": kind})
    found = measure_costs(run)
    assert found.extra_parameters >= 0 and found.backprop_flops == BACKPROP_FLOPS
    assert found.flops > BACKPROP_FLOPS / 2
    assert found.bytes_forward >= FORWARD


def test_operations_are_counted_as_torch_counts_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 7), nn.Linear(7, 3)
    )
    x = torch.randn(5, 2, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    with FlopMeter() as mine:
        model(x).sum().backward()
    assert mine.flops == theirs.get_total_flops() > 0
