"""`precision.compute=auto` is chosen once, before anything depends on it, and written down."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from blocklocal import cli, precision
from blocklocal.compare.study import expand, load_study
from blocklocal.config import load_config, make_config
from blocklocal.doctor.here import check_here
from blocklocal.doctor.versions import report
from blocklocal.preparation import prepare
from blocklocal.sweep_file import SweepFile
from learning.compute_type import Speeds, fast_on_gpu, measured
from learning.numerics import Numerics
from learning.settings import PrecisionSettings
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL
from tests.blocklocal.studies import write_study

AUTO = (*SMALL, "engine.kind=sequential", "precision.compute=auto")
BFLOAT16, FLOAT32 = Speeds(2.0, 1.0), Speeds(1.0, 6.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each measurement; the first finds bfloat16 faster, all others float32."""
    threads: list[int] = []

    def speeds(count: int) -> Speeds:
        threads.append(count)
        return BFLOAT16 if len(threads) == 1 else FLOAT32

    monkeypatch.setattr(precision, "measured", speeds)
    return threads


def test_the_faster_type_is_chosen_and_a_small_gain_is_none() -> None:
    assert BFLOAT16.faster == "bfloat16" and FLOAT32.faster == "float32"
    assert Speeds(1.05, 1.0).faster == "float32"
    assert str(BFLOAT16) == "bfloat16 is 2.0 times as fast as float32"
    assert str(FLOAT32) == "float32 is 6.5 times as fast as bfloat16"


def test_what_is_chosen_is_the_run_s_and_a_resumed_run_s(tmp_path: Path, asked: list[int]) -> None:
    words = [*AUTO, "training.steps=4", "checkpoints.every=2", f"run.directory={tmp_path / 'run'}"]
    words += ["engine.resources.threads=3"]
    assert cli.main(["train", *words]) == 0
    run = RunDirectory.open(tmp_path / "run")
    assert run.config["precision"]["compute"] == "bfloat16" and asked == [3]
    resume = ["train", "--resume", str(run.path), "--checkpoint", "2"]
    assert cli.main(resume) == 0
    assert RunDirectory.open(run.path).config["precision"]["compute"] == "bfloat16"
    assert asked == [3]


def test_a_type_that_is_named_is_not_measured(asked: list[int]) -> None:
    for compute in ("float32", "bfloat16", "float64"):
        ready = prepare(load_config(None, [*SMALL, f"precision.compute={compute}"]))
        assert ready.config.precision.compute == compute
    assert not asked


def test_actors_on_gpus_do_not_ask_the_processor(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["engine.kind=ray", "engine.resources.gpus=1"]
    config = load_config(None, [*SMALL, "precision.compute=auto", *words])
    assert precision.with_compute(config).precision.compute == fast_on_gpu() == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert precision.with_compute(config).precision.compute == "float32"
    assert not asked


def test_all_runs_of_a_study_get_one_type(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One process measures once, as `measured` does: the jobs are other processes.
    monkeypatch.setattr(precision, "measured", functools.cache(precision.measured))
    path = write_study(tmp_path)
    found = expand(load_study(path), path, ["precision.compute=auto"])
    chosen = [c.config(seed).precision.compute for c in found for seed in (0, 1)]
    assert chosen == ["bfloat16"] * 4 and asked == [1]
    assert measured(1) is measured(1)


def test_all_trials_of_a_sweep_get_one_type(tmp_path: Path, asked: list[int]) -> None:
    tree = make_config({"precision": {"compute": "auto"}, "blocks": {"at": ["layer2"]}})
    file = SweepFile.of(
        {
            **tree.model_dump(mode="json"),
            "sweep": {"trials": 2},
            "space": {"optimizer.lr": {"choice": [0.1, 0.2]}},
        }
    )
    trials = [file.config({"optimizer.lr": lr}).precision.compute for lr in (0.1, 0.2)]
    assert trials == ["bfloat16", "bfloat16"] and len(asked) == 1


def test_the_doctor_says_which_is_fast() -> None:
    (said,) = [c for c in check_here(report()) if c.name == "precision.compute here"]
    assert "times as fast as" in said.detail


def test_no_block_is_built_without_a_type() -> None:
    with pytest.raises(AssertionError, match="chosen before"):
        Numerics(PrecisionSettings(compute="auto"), torch.device("cpu"))
