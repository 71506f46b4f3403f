"""Reports from fabricated records: means, deviations and gaps by hand, perplexity, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blocklocal.compare.command import TORCH
from blocklocal.compare.records import Record, Records, run_settings
from blocklocal.compare.study import Combination, expand, load_study
from tests.blocklocal.helpers import command, sentence
from tests.blocklocal.studies import write_study

Capture = pytest.CaptureFixture[str]
DIRECTORY = Path("studies/tiny")
COSTS = {
    "parameters": 100,
    "extra_parameters": 12345,
    "flops": 1250,
    "backprop_flops": 1000,
    "activation_bytes": [1024, 3072, 2048],
    "bytes_forward": 512,
    "bytes_back": 2560,
    "bytes_beside": 0,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fabricate(path: Path, rule: str, blocks: str | None, seed: int, **changes: Any) -> None:
    """Add the record of a run to the study's directory."""
    combination = _combination(path, rule, blocks)
    _add("runs", combination, seed, {"metrics": {}, "curve": [], "seconds": 1.0} | changes)


def fabricate_costs(path: Path, rule: str, **changes: Any) -> None:
    _add("costs", _combination(path, rule, None), 0, {"costs": COSTS | changes})


def _combination(path: Path, rule: str, blocks: str | None) -> Combination:
    found = expand(load_study(path), path)
    return next(c for c in found if (c.rule, c.blocks) == (rule, blocks))


def _add(kind: str, combination: Combination, seed: int, content: Record) -> None:
    record = {
        "settings": run_settings(combination.config(seed)),
        "code": {"torch": TORCH, "git_commit": "a" * 40, "git_dirty": False},
        "command": "blocklocal compare study.yaml",
        "processor": "P",
        "cores": 2,
    }
    Records(DIRECTORY, kind).add(combination.label, record | content)


def accuracy(value: float, block: int = 2) -> dict[str, float]:
    """Metrics of a run; the last block counts."""
    return {"test/block1/accuracy": 0.1, f"test/block{block}/accuracy": value}


def results() -> dict[str, Any]:
    return json.loads((DIRECTORY / "results.json").read_text())


def test_numbers_by_hand(capsys: Capture, here: Path) -> None:
    path = write_study(here, title="A title", description="Words.", seeds=[0, 1, 2])
    for seed, value in enumerate((0.70, 0.74, 0.72)):
        fabricate(path, "backprop", None, seed, metrics=accuracy(value))
    for seed, value in enumerate((0.60, 0.70)):
        fabricate(path, "local", None, seed, metrics=accuracy(value))
    fabricate_costs(path, "backprop", extra_parameters=0, flops=1000)
    fabricate_costs(path, "local")
    command(capsys, "compare", "study.yaml", "--report")
    # Deviations: sqrt((2² + 2² + 0) / 2) = 2, sqrt((5² + 5²) / 1) = 7.07.
    assert (DIRECTORY / "report.md").read_text().split("\n\n")[:4] == [
        "# A title",
        "Words.",
        "| rule | accuracy % | std | runs | gap to backprop | extra parameters | extra FLOPs | "
        "activations, largest block | activations, all blocks | forward a step | back a step | "
        "beside a step |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| backprop | 72.00 | 2.00 | 3 | +0.00 | 0 | +0.0% | 3.0 KiB | 6.0 KiB | 512 B | 2.5 KiB | "
        "0 B |\n"
        "| local | 65.00 | 7.07 | 2 | -7.00 | 12,345 | +25.0% | 3.0 KiB | 6.0 KiB | 512 B | "
        "2.5 KiB | 0 B |",
        "![accuracy](accuracy.png)",
    ]
    assert (
        (DIRECTORY / "report.md")
        .read_text()
        .endswith(
            f"\n5 runs of `blocklocal compare study.yaml`, commit aaaaaaaaaaaa, torch {TORCH}, "
            "on 2 cores of P.\n"
        )
    )
    ours, theirs = results()["tables"][0]["rows"]
    assert ours["mean"] == pytest.approx(72) and theirs["gap"] == pytest.approx(-7)
    assert theirs["values"] == {"0": pytest.approx(60), "1": pytest.approx(70)}
    assert theirs["std"] == pytest.approx(math.sqrt(50))
    assert theirs["costs"] == COSTS


def test_without_a_baseline_and_without_costs(capsys: Capture, here: Path) -> None:
    path = write_study(here)
    fabricate(path, "local", None, 0, metrics=accuracy(0.5))
    command(capsys, "compare", "study.yaml", "--report")
    text = (DIRECTORY / "report.md").read_text()
    assert "| rule | accuracy % | std | runs | gap to backprop |\n" in text
    assert "| backprop |  |  | 0 |  |\n| local | 50.00 |  | 1 |  |\n" in text
    assert text.startswith("# tiny\n") and "Costs are counts" not in text


def test_a_table_for_each_cut_and_a_picture_over_blocks(capsys: Capture, here: Path) -> None:
    path = write_study(here, blocks=[2, 3], seeds=[0])
    for count in (2, 3):
        fabricate(path, "backprop", f"{count} blocks", 0, metrics=accuracy(0.8, block=count))
        fabricate(path, "local", f"{count} blocks", 0, metrics=accuracy(0.9 - count / 10, count))
    command(capsys, "compare", "study.yaml", "--report")
    text = (DIRECTORY / "report.md").read_text()
    two, three = text.partition("## 2 blocks\n")[2].split("## 3 blocks\n")
    assert "| local | 70.00 |  | 1 | -10.00 |" in two
    assert "| local | 60.00 |  | 1 | -20.00 |" in three
    assert [(t["blocks"], t["count"]) for t in results()["tables"]] == [
        ("2 blocks", 2), ("3 blocks", 3),
    ]  # fmt: skip
    assert Image.open(DIRECTORY / "accuracy.png").size[0] > 500


def test_agreement_is_a_mean_over_evaluations_and_runs(capsys: Capture, here: Path) -> None:
    path = write_study(here)
    rows = [{"train/block1/agreement": 0.2}, {"train/block1/agreement": 0.4}, {"step": 1}]
    fabricate(path, "local", None, 0, metrics=accuracy(0.5), curve=rows)
    rows = [{"train/block1/agreement": 0.9, "train/block2/agreement": 1.0}]
    fabricate(path, "local", None, 1, metrics=accuracy(0.5), curve=rows)
    command(capsys, "compare", "study.yaml", "--report")
    row = results()["tables"][0]["rows"][1]
    assert row["agreement"] == {"block1": pytest.approx(0.5), "block2": 1.0}
    assert "![agreement](agreement.png)" in (DIRECTORY / "report.md").read_text()
    assert Image.open(DIRECTORY / "agreement.png").size[0] > 500


def test_pictures_without_numbers_go(capsys: Capture, here: Path) -> None:
    path = write_study(here)
    fabricate(path, "local", None, 0, metrics=accuracy(0.5))
    (DIRECTORY / "agreement.png").write_bytes(b"old")
    command(capsys, "compare", "study.yaml", "--report")
    assert not (DIRECTORY / "agreement.png").exists()
    assert "agreement.png" not in (DIRECTORY / "report.md").read_text()


def test_perplexity(capsys: Capture, here: Path) -> None:
    """Losses of rows of tokens are means over tokens."""
    path = write_study(here)
    for seed, loss in enumerate((math.log(8), math.log(10))):
        metrics = {"test/block2/loss": loss, "test/block2/accuracy": 0.3}
        fabricate(path, "backprop", None, seed, metrics=metrics, labels=64)
    command(capsys, "compare", "study.yaml", "--report")
    assert "| backprop | 9.00 | 1.41 | 2 | +0.00 |" in (DIRECTORY / "report.md").read_text()
    assert "| rule | perplexity |" in (DIRECTORY / "report.md").read_text()
    write_study(here, metric="accuracy")
    command(capsys, "compare", "study.yaml", "--report")
    assert "| backprop | 30.00 | 0.00 | 2 | +0.00 |" in (DIRECTORY / "report.md").read_text()


def test_another_split(capsys: Capture, here: Path) -> None:
    path = write_study(here, split="validation")
    fabricate(path, "local", None, 0, metrics={"validation/block2/accuracy": 0.25})
    command(capsys, "compare", "study.yaml", "--report")
    assert "| rule | validation accuracy % |" in (DIRECTORY / "report.md").read_text()
    write_study(here)
    said = sentence(capsys, "compare", "study.yaml", "--report")
    assert said == "a run has no test accuracy: choose another split, or data with test rows"


def test_runs_of_several_versions_are_told_apart(capsys: Capture, here: Path) -> None:
    path = write_study(here)
    fabricate(path, "local", None, 0, metrics=accuracy(0.5))
    code = {"torch": "0.0", "git_commit": None, "git_dirty": None}
    fabricate(path, "local", None, 1, metrics=accuracy(0.5), code=code, command=None)
    command(capsys, "compare", "study.yaml", "--report")
    *_, first, second = (DIRECTORY / "report.md").read_text().strip().split("\n\n")
    assert first.startswith("1 run of `blocklocal compare study.yaml`, commit aaaaaaaaaaaa, ")
    assert second == "1 run of `unknown command`, commit unknown, torch 0.0, on 2 cores of P."


def test_where_data_lie_is_nobodys_business(capsys: Capture, here: Path) -> None:
    write_study(here, rules={"backprop": ["rule.kind=backprop"]}, seeds=[0])
    words = [f"data.path={here}/mine.npz", "training.steps=2"]
    command(capsys, "compare", "study.yaml", *words)
    assert str(here) not in (DIRECTORY / "report.md").read_text()
    assert "data.path=mine.npz training.steps=2`" in (DIRECTORY / "report.md").read_text()
