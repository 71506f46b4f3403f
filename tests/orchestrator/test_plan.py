"""Plans hold the numbers one gets by hand, survive a file and refuse the wrong network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from learning.errors import UserError
from learning.units import Unit, units_of
from orchestrator.plan import BlockPlan, Plan, human_bytes
from orchestrator.planning import make_plan
from orchestrator.settings import BlocksSettings
from tests.clock import Clock

X = torch.zeros(16, 8)


def _units() -> list[Unit]:
    # Parameters: 8*4+4 = 36, 0, 4*4+4 = 20, 0, 4*2+2 = 10.
    return units_of(
        nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    )


def _by_parameters(count: int = 2) -> Plan:
    settings = BlocksSettings(count=count, balance="parameters")
    return make_plan(_units(), settings, X, cpus=0.5, gpus=0.0, profile=False)


def test_balanced_by_parameters() -> None:
    # 36 | 30 is the best largest block; the parameter-free ReLU goes where sizes are most even.
    plan = _by_parameters()
    assert [b.units for b in plan.blocks] == [("0", "1"), ("2", "3", "4")]
    assert plan.blocks[0] == BlockPlan(
        index=1,
        units=("0", "1"),
        parameters=36,
        input_shape=(8,),
        output_shape=(4,),
        boundary_bytes=16 * 4 * 4,
        activation_bytes=16 * 8 * 4 + 16 * 4 * 4,  # the input and the ReLU's output
        time_share=None,
        cpus=0.5,
        gpus=0.0,
    )
    last = plan.blocks[1]
    assert (last.index, last.parameters, last.input_shape, last.output_shape) == (2, 30, (4,), (2,))
    assert last.boundary_bytes == 16 * 2 * 4
    # Input of "2" and the output of "3", which is also the input of "4".
    assert last.activation_bytes == 16 * 4 * 4 * 2


def test_balanced_by_memory() -> None:
    # Alone the units keep 512, 256, 256, 256, 256 bytes.
    settings = BlocksSettings(count=2, balance="memory")
    plan = make_plan(_units(), settings, X, profile=False)
    assert [b.units for b in plan.blocks] == [("0", "1"), ("2", "3", "4")]
    layers = nn.Sequential(nn.Linear(64, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 256))
    wide, sample = units_of(layers), torch.zeros(16, 64)
    # 4096, 64, 64, 64 bytes, but 65, 2, 2, 512 parameters: the measures disagree.
    plan = make_plan(wide, settings, sample, profile=False)
    assert [b.units for b in plan.blocks] == [("0",), ("1", "2", "3")]
    other = make_plan(wide, BlocksSettings(balance="parameters"), sample, profile=False)
    assert [b.units for b in other.blocks] == [("0", "1", "2"), ("3",)]


CLOCK = Clock()
"""Of this process: modules are timed as copies, which have no other in common."""


class _Sleep(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.sleep(self.seconds)
        return x * 1.0


@pytest.mark.parametrize("profile", [True, False])
def test_balanced_by_time_always_profiles(profile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.profile.time", CLOCK)
    units = [Unit(f"u{i}", _Sleep(s)) for i, s in enumerate([1.0, 1.0, 1.0, 6.0])]
    settings = BlocksSettings(count=2, balance="time")
    plan = make_plan(units, settings, X, profile=profile)
    assert [b.units for b in plan.blocks] == [("u0", "u1", "u2"), ("u3",)]
    shares = [b.time_share for b in plan.blocks]
    assert shares == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("balance", ["time", "memory", "parameters"])
def test_the_rule_moves_cuts(balance: Literal["time", "memory", "parameters"]) -> None:
    """A head that costs more than all units: before it stands as little as can be."""
    seen = []

    def measure(blocks: list[list[Unit]], shapes: list[tuple[int, ...]]) -> list[float]:
        seen.append(([[u.name for u in b] for b in blocks], shapes))
        return [100.0 * len(blocks[0]), 1.0]

    settings = BlocksSettings(count=2, balance=balance)
    plan = make_plan(_units(), settings, X, profile=False, measure=measure)
    if balance == "parameters":
        assert not seen and plan.blocks[0].units == ("0", "1")
    else:
        assert plan.blocks[0].units == ("0",)
        assert seen[-1] == ([["0"], ["1", "2", "3", "4"]], [(4,), (2,)])
    named = BlocksSettings(at=("3",), balance=balance)
    assert make_plan(_units(), named, X, measure=measure).blocks[1].units == ("3", "4")


def test_explicit_cuts_win() -> None:
    settings = BlocksSettings(count=9, at=("1", "4"))
    assert settings.count == 3
    assert BlocksSettings.model_validate(settings.model_dump()) == settings
    plan = make_plan(_units(), settings, X, profile=False)
    assert [b.units for b in plan.blocks] == [("0",), ("1", "2", "3"), ("4",)]
    assert [b.time_share for b in plan.blocks] == [None] * 3
    timed = make_plan(_units(), settings, X, profile=True)
    assert sum(b.time_share or 0 for b in timed.blocks) == pytest.approx(1)
    with pytest.raises(UserError, match="'7', which is not a unit"):
        make_plan(_units(), BlocksSettings(at=("7",)), X)


def test_every_parameter_is_owned_once() -> None:
    assert sum(b.parameters for b in _by_parameters(3).blocks) == 36 + 20 + 10
    shared = nn.Linear(4, 4, bias=False)
    units = [Unit("a", shared), Unit("b", nn.ReLU()), Unit("c", shared)]
    settings = BlocksSettings(count=2, balance="parameters")
    with pytest.raises(UserError, match=r"c.weight in block 2 is the same tensor as a.weight"):
        make_plan(units, settings, torch.zeros(2, 4), profile=False)
    one = make_plan(units, BlocksSettings(at=()), torch.zeros(2, 4), profile=False)
    assert one.blocks[0].parameters == 16  # shared inside a block: allowed and counted once


def test_impossible_count_is_refused_before_anything_runs() -> None:
    def fail(x: Tensor) -> Tensor:
        raise AssertionError("profiled")

    units = _units()
    units[0].module.forward = fail
    with pytest.raises(UserError, match=r"blocks\.count = 9 is more than the 5 units"):
        make_plan(units, BlocksSettings(count=9), X)
    with pytest.raises(ValidationError):
        BlocksSettings(count=0)


def test_hash_names_the_partition_only() -> None:
    plan = _by_parameters()
    # Written out, so that a change of the format, which would orphan checkpoints, is noticed.
    assert plan.hash() == "ef0ac279afcb4e6a"
    changed = [
        b.model_copy(update={"time_share": 0.5, "cpus": 2.0, "activation_bytes": 1})
        for b in plan.blocks
    ]
    assert Plan(blocks=tuple(changed)).hash() == plan.hash()
    assert _by_parameters(3).hash() != plan.hash()
    wide = plan.blocks[0].model_copy(update={"input_shape": (9,)})
    assert Plan(blocks=(wide, plan.blocks[1])).hash() != plan.hash()


def test_save_and_load(tmp_path: Path) -> None:
    plan = make_plan(_units(), BlocksSettings(at=("2",)), X)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(str(tmp_path / "plan.json"))
    assert loaded == plan and loaded.hash() == plan.hash()
    with pytest.raises(ValidationError):
        loaded.blocks = ()  # type: ignore[misc]


def _edited(change) -> str:
    data = json.loads(_by_parameters().model_dump_json())
    change(data["blocks"])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("{}", "blocks: Field required"),
        ('{"blocks": []}', "at least 1 item"),
        (_edited(lambda b: b[1].update(index=3)), "block 2 has index 3"),
        (_edited(lambda b: b[1].update(units=["0", "3"])), "unit '0' appears twice"),
        (
            _edited(lambda b: b[1].update(input_shape=[5])),
            r"sends \(4,\) but block 2 expects \(5,\)",
        ),
        (_edited(lambda b: b[0].update(parameters=-1)), "blocks.0.parameters"),
        (_edited(lambda b: b[0].update(colour="red")), "blocks.0.colour: Extra inputs"),
    ],
)
def test_a_broken_file_is_a_user_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value) and "plan again" in str(caught.value)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Plan.load(tmp_path / "none.json")


def test_table() -> None:
    plan = _by_parameters()
    first = plan.blocks[0].model_copy(update={"time_share": 0.375, "parameters": 1234567})
    table = Plan(blocks=(first, plan.blocks[1])).table()
    assert table.row_count == 2
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    rows = [line for line in capture.get().splitlines() if ".." in line]
    assert [c.strip() for c in rows[0].split("│")[1:-1]] == [
        *("1", "0 .. 1 (2)", "1,234,567", "4", "256 B", "768 B", "38%"),
    ]
    assert [c.strip() for c in rows[1].split("│")[1:-1]] == [
        *("2", "2 .. 4 (3)", "30", "2", "128 B", "512 B", "-"),
    ]


def test_regroup_and_refuse_another_network() -> None:
    plan, units = _by_parameters(), _units()
    groups = plan.units_of_blocks(units)
    assert groups == [units[:2], units[2:]]
    with pytest.raises(UserError, match="unit 5 is missing in this network and 4 in plan"):
        plan.units_of_blocks(units[:4])
    with pytest.raises(UserError, match="unit 6 is 9 in this network and missing in plan"):
        plan.units_of_blocks([*units, Unit("9", nn.ReLU())])
    with pytest.raises(UserError, match="unit 2 is act in this network and 1 in plan"):
        plan.units_of_blocks([units[0], Unit("act", nn.ReLU()), *units[2:]])


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2 << 20, "2.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
