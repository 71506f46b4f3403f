"""`blocklocal plan --simulate`: the table, the picture, the JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.operations import Kind
from blocklocal import cli, preparation, simulating
from blocklocal.config import load_config
from blocklocal.simulating import counts
from blocklocal.simulating_schedules import schedules
from learning.errors import UserError
from learning.objectives.heads import HeadSettings
from learning.rules import Interlocking, Local
from orchestrator.clusters import ClusterDescription
from orchestrator.settings import SourcePlace
from orchestrator.simulation import alone, simulate
from tests.orchestrator.machines import costs_of, made_program, times

SMALL = [
    "network.widths=[8,8,8,8]",
    "blocks.at=[layer2,layer3,layer4]",
    "rule.kind=local",
    "training.batch=8",
    "training.shards=2",
    "engine.resources.threads=1",
]


def test_predictions_with_picture_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, picture = tmp_path / "cluster.yaml", tmp_path / "scaling.png"
    cluster.write_text("{nodes: 4, devices: 2, overhead: 0.0001}")
    words = ["plan", *SMALL, "--simulate", "--cluster", str(cluster), "--picture", str(picture)]
    assert cli.main([*words, "--devices", "2,6"]) == 0, capsys.readouterr().err
    assert "left out" not in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads(picture.with_suffix(".json").read_text())
    assert record["cluster"]["nodes"] == 4
    assert "Infinity" not in picture.with_suffix(".json").read_text()  # which JSON has not
    rows = {(row["schedule"], row["devices"]): row for row in record["predictions"]}
    assert len(rows) == 7 * 2
    for row in rows.values():
        assert 0 < row["speed_up"] <= row["devices"] and 0 <= row["idle_share"] <= 1
    assert rows["local", 6]["speed_up"] > rows["backprop, 1f1b", 6]["speed_up"]
    # Once more: nothing is overwritten, and that is said before anything is measured.
    assert cli.main([*words, "--devices", "2,6"]) == 2
    assert "exists: choose another file or remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "2"], "go with --simulate: add it"),
        (["--simulate", "--devices", "two"], "is no list of numbers: write 2,8,64"),
        (["--simulate", "--devices", "1,2"], "--devices = 1 is not possible: give 2 to 1024"),
        (["--simulate", "--picture", "x.pdf"], "x.pdf is no .png file: name it so"),
        (["--simulate", "--cluster", "none.yaml"], "cannot read none.yaml"),
    ],
)
def test_bad_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *SMALL, *words]) == 2
    assert said in capsys.readouterr().err


def test_counts() -> None:
    assert counts(None, ClusterDescription(nodes=8, devices=8)) == [2, 8, 64]
    assert counts("8,2", ClusterDescription(nodes=8)) == [2, 8]
    with pytest.raises(UserError, match="1 devices and a prediction takes at least 2"):
        counts(None, ClusterDescription())


@pytest.mark.parametrize(
    ("kind", "threads", "source", "seconds"),
    [
        # 2 blocks of F, L and U at half the time and 0.1 s more each; the source is elsewhere.
        ("accelerator", 1, "actor", 2 * (3.0 / 2 + 3 * 0.1)),
        ("accelerator", 4, "actor", 2 * (3.0 / 2 + 3 * 0.1)),
        # A processor makes the batch, at its own speed, and the block waits for it.
        ("accelerator", 1, "block1", 2 * (3.0 / 2 + 3 * 0.1) + 0.4 + 0.1),
        ("accelerator", 4, "block1", 2 * (3.0 / 2 + 3 * 0.1) + 0.4 + 0.1),
        # On one core, and the batch takes its 0.4 s / 2 and 0.1 s more there.
        ("cpu", 1, "actor", 2 * (3.0 / 2 + 3 * 0.1) + 0.3),
        ("cpu", 4, "actor", 4 * 2 * (3.0 / 2 + 3 * 0.1) + 0.3),
        ("cpu", 4, "block1", 4 * 2 * (3.0 / 2 + 3 * 0.1) + 0.3),
    ],
)
def test_one_device_alone(kind: str, threads: int, source: SourcePlace, seconds: float) -> None:
    made = made_program(Local(), 2)
    costs = costs_of(made, {**times(1.0, 2.0), Kind.BATCH: 0.4}, threads=threads)
    cluster = ClusterDescription.model_validate(
        {"kind": kind, "nodes": 2, "devices": 4, "speed": 2.0, "overhead": 0.1}
    )
    assert alone(made, costs, cluster, source) == pytest.approx(seconds)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
@pytest.mark.parametrize("source", ["block1", "actor"])
def test_no_more_speed_up_than_devices(kind: str, threads: int, source: SourcePlace) -> None:
    made = made_program(Local(), 4)
    costs = costs_of(made, {**times(1.0, 2.0, 0.5), Kind.BATCH: 0.2}, threads=threads)
    cluster = ClusterDescription.model_validate({"kind": kind, "devices": 4, "overhead": 0.1})
    predicted = simulate(made, costs, cluster, range(4), source=source, steps=60)
    speed_up = predicted.steps_per_second * alone(made, costs, cluster, source)
    # All blocks are at work all the time: on cores with what the threads can use of them.
    assert speed_up == pytest.approx(4.0, rel=0.07)


@pytest.mark.parametrize(
    ("words", "cores", "source"),
    [
        ([], 4.0, "block1"),  # four blocks of a thread leave no core free
        ([], 5.0, "actor"),
        (["engine.source=block1"], 64.0, "block1"),
        (["engine.source=actor"], 1.0, "actor"),
    ],
)
def test_batches_are_made_where_the_run_makes_them(
    words: list[str], cores: float, source: SourcePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards of 3 s each, and 0.5 s for each batch that block 1 makes."""
    took = {**times(1.0, 2.0), Kind.BATCH: 0.5}
    monkeypatch.setattr(preparation, "available_cpus", lambda: cores)
    monkeypatch.setattr(
        simulating, "measure_costs", lambda program, *_, **__: costs_of(program, took)
    )
    prepared = preparation.prepare(load_config(None, [*SMALL, *words]))
    said: list[str] = []
    rows = simulating.predict(prepared, simulating.described(None), [4], said.append)
    assert said[0].endswith(f"(engine.source={source})")
    (local,) = [row for row in rows if row.schedule == "local"]
    step, together = (7.0, 4 * 6.0 + 2 * 0.5) if source == "block1" else (6.0, 4 * 6.0)
    assert 1 / local.prediction.steps_per_second == pytest.approx(step)
    assert local.speed_up == pytest.approx(together / step)
    assert {row.record["source"] for row in rows} == {source}


def test_three_blocks_say_how_many_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "blocks.at=[layer2,layer3]", "--simulate", "--devices", "8"]
    assert cli.main(["plan", *words]) == 0
    out = capsys.readouterr().out
    (said,) = [line for line in out.splitlines() if line.startswith("bll is left out: ")]
    assert "was not measured on 3 blocks: " in said and "blocks.count=4 or more" in said


def test_the_configured_rule_keeps_its_settings() -> None:
    chosen = {c.name: c.rule for c in schedules(Local(head=HeadSettings(kind="conv")))}
    local = chosen["local"]
    assert isinstance(local, Local) and local.head.kind == "conv"
    assert isinstance(chosen["3-wise"], Interlocking) and chosen["3-wise"].reach == 3
