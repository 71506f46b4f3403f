"""Costs of wider networks, and descriptions of clusters."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.operations import Kind
from learning.errors import UserError
from learning.rules import BLL, Backprop, Interlocking, Local
from learning.rules.guided import PeriodicGuidance
from learning.rules.man import MomentumAuxiliary
from orchestrator.clusters import ClusterDescription
from orchestrator.simulation import in_turns, simulate
from orchestrator.simulation_scale import scale, widen
from tests.orchestrator.machines import FREE, costs_of, made_program, times

EXAMPLES = Path(__file__).parent.parent.parent / "examples/clusters"


def test_middle_blocks_repeat_in_turn() -> None:
    made = made_program(Local(), 4)
    own = {(f"block{k}", Kind.FORWARD): float(k) for k in range(1, 5)}
    wide = scale(costs_of(made, times(0.0, 1.0), of=own, state=10), made, 7)
    seconds = [wide.operations[f"block{k}", Kind.FORWARD].seconds for k in range(1, 8)]
    assert seconds == [1.0, 2.0, 3.0, 2.0, 3.0, 2.0, 4.0]
    assert wide.state_bytes["block7"] == 10 and len(wide.activation_bytes) == 7


def test_the_same_number_of_blocks_is_the_same_network() -> None:
    for rule in (Local(), BLL(), Backprop(), Interlocking(reach=2), MomentumAuxiliary()):
        made = made_program(rule, 4)
        costs = costs_of(made, times(1.0, 2.0, 0.5), state=7, activation=3)
        assert scale(costs, made, 4) == costs


def test_parts_of_blocks() -> None:
    made = made_program(Backprop(), 3)
    costs = scale(costs_of(made, times(1.0, 2.0), state=8, activation=4), made, 6, share=0.5)
    assert costs.operations["block4", Kind.GRADIENT].seconds == 1.0
    assert set(costs.state_bytes.values()) == {4} and set(costs.activation_bytes.values()) == {2}


def test_inner_blocks_lend_what_a_short_chain_does_not_have() -> None:
    """The second of three pairwise blocks forms no loss for another; every later one does."""
    made = made_program(Interlocking(reach=3), 4)
    costs = costs_of(made, times(1.0, 2.0))
    assert ("block2", Kind.ASSESS) not in costs.operations
    assert scale(costs, made, 9).operations["block5", Kind.ASSESS].seconds == 2.0
    short = made_program(Interlocking(reach=3), 3)
    with pytest.raises(UserError, match=r"'L' of block3 was not measured on 3 blocks: .*count"):
        scale(costs_of(short, times(1.0, 2.0)), short, 9)


def test_messages_that_a_short_chain_does_not_have() -> None:
    """Of two feedback modules only the top one sends a table down: it models none between."""
    short = made_program(BLL(), 3)
    said = r"message 'raw' of feedback\d was not measured on 3 blocks: .* blocks.count=4 or more"
    with pytest.raises(UserError, match=said):
        scale(costs_of(short, times(1.0, 2.0)), short, 8)
    four = made_program(BLL(), 4)
    scale(costs_of(four, times(1.0, 2.0)), four, 8)


@pytest.mark.parametrize("rule", [BLL(), MomentumAuxiliary(), PeriodicGuidance(), Backprop()])
def test_every_wide_network_runs(rule) -> None:
    made = made_program(rule, 4, 2)
    costs = costs_of(made, {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.5})
    predicted = simulate(widen(made, 20), scale(costs, made, 20), FREE, in_turns(20, 10))
    assert predicted.steps_per_second > 0


def test_one_block_has_no_middle() -> None:
    made = made_program(Local(), 1)
    with pytest.raises(UserError, match="8 blocks cannot be predicted from 1 measured"):
        widen(made, 8)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_descriptions(path: Path) -> None:
    assert ClusterDescription.load(path).total in (2, 8, 1024)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: 0", r"nodes = 0 is not possible: input should be greater"),
        ("cores: 2", r"cores is unknown: see docs/simulator.md"),
        ("within: {latency: 1}", r"within.bandwidth is missing: set it"),
        ("[1, 2]", r"describes no cluster: write key: value"),
        ("a: b: c", r"is not valid YAML .*: mend the file"),
        ("{kind: cpu, devices: 2, background: 2}", r"leaves nothing of 2 cores: set it lower"),
    ],
)
def test_bad_descriptions(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        ClusterDescription.load(path)


def test_a_missing_description(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .* give an existing file"):
        ClusterDescription.load(tmp_path / "none.yaml")
