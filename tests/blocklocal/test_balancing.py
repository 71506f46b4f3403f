"""Cuts measured under the rule: how many, with what, and what ends the search."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from blocklocal import balancing
from blocklocal.balancing import CUTS
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import prepare
from learning.build import Program
from learning.errors import UserError
from orchestrator.costs import Costs
from tests.blocklocal.helpers import SMALL, blobs, command, sentence

Capture = pytest.CaptureFixture[str]


def configuration(**sections) -> RunConfig:
    tree = {
        "rule": {"kind": "local"},
        "blocks": {"count": 2},
        "training": {"batch": 16, "steps": 4},
        "engine": {"kind": "sequential", "resources": {"threads": 1}},
    }
    return make_config({**tree, **sections})


def network(layers: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers - 1)), nn.Linear(8, 4))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """What was measured."""
    programs: list[Program] = []
    measure = balancing.measure_costs

    def noting(program: Program, *arguments, **more) -> Costs:
        programs.append(program)
        return measure(program, *arguments, **more)

    monkeypatch.setattr(balancing, "measure_costs", noting)
    return programs


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thousand seconds pass between two looks at the clock."""
    ticks = count(0, 1000)
    monkeypatch.setattr(balancing.time, "monotonic", lambda: float(next(ticks)))


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize(("balance", "cuts"), [("memory", CUTS), ("time", 1)])
def test_bytes_have_no_time_limit(
    balance: str, cuts: int, monkeypatch: pytest.MonkeyPatch, measured: list[Program]
) -> None:
    """Each cut seems to be a tenth better than the last, so the search goes on while it may."""
    found = iter(0.9**n for n in range(20))
    works = balancing.works

    def better(program: Program, costs: Costs):
        result, level = works(program, costs), next(found)
        for name, own in result.items():
            own.seconds = level * (1.0 if name == "block1" else 0.5)
            own.activations = round(1e6 * own.seconds)
        return result

    monkeypatch.setattr(balancing, "works", better)
    config = configuration(blocks={"count": 2, "balance": balance})
    prepare(config, model=network(16), dataset=blobs())
    assert len(measured) == cuts


def test_compiled_blocks_are_measured_as_written(measured: list[Program]) -> None:
    config = configuration(precision={"compile": "inductor"})
    prepared = prepare(config, model=network(4), dataset=blobs())
    assert measured
    assert {program.settings.precision.compile for program in measured} == {"none"}
    assert prepared.program.settings.precision.compile == "inductor"  # what runs stays


def test_a_plan_for_cuda_graphs_needs_no_gpu(capsys: Capture) -> None:
    words = ["engine.kind=ray", "engine.resources.gpus=1", "precision.compile=cuda-graphs"]
    out = command(capsys, "plan", *SMALL, *words, "rule.kind=local")
    assert "steps/s with rule local" in out


class Poison(nn.Module):
    def forward(self, x):
        return x * float("nan")


def test_a_loss_that_is_not_finite_is_said_and_not_passed_over() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Poison(), nn.Linear(8, 8), nn.Linear(8, 4))
    said = r"^the loss of block \d is nan in step 0 of measuring costs, .*: mend the data"
    with pytest.raises(UserError, match=said):
        prepare(configuration(), model=model, dataset=blobs())


def test_an_error_of_measuring_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__) -> Costs:
        raise UserError("no costs today")

    monkeypatch.setattr(balancing, "measure_costs", fail)
    with pytest.raises(UserError, match="no costs today"):
        prepare(configuration(), model=network(), dataset=blobs())


def test_a_cut_that_the_rule_cannot_have_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, measured: list[Program]
) -> None:
    asked = []

    def refuse(program: Program, *_: object) -> None:
        asked.append(program)
        raise UserError("not this one")

    monkeypatch.setattr(balancing, "check_program", refuse)
    prepare(configuration(), model=network(), dataset=blobs())
    assert asked and not measured


def test_a_plan_is_not_made_for_a_file_that_exists(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    file = tmp_path / "plan.json"
    file.write_text("mine")

    def prepare(_: RunConfig) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("blocklocal.commands.plan.prepare", prepare)
    said = sentence(capsys, "plan", *SMALL, "--save", file)
    assert said == f"{file} exists: choose another file or remove it"
