"""`blocklocal plan --simulate`: the table, the picture, the JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.operations import Kind
from blocklocal import cli
from blocklocal.simulating import alone, counts, schedules
from learning.errors import UserError
from learning.objectives.heads import HeadSettings
from learning.rules import Interlocking, Local
from orchestrator.clusters import ClusterDescription
from orchestrator.simulation import simulate
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
    ("kind", "threads", "seconds"),
    [
        # 2 blocks of F, L and U at half the time and 0.1 s more each; the source is elsewhere.
        ("accelerator", 1, 2 * (3.0 / 2 + 3 * 0.1)),
        ("accelerator", 4, 2 * (3.0 / 2 + 3 * 0.1)),
        # On one core, and the batch takes its 0.4 s / 2 and 0.1 s more there.
        ("cpu", 1, 2 * (3.0 / 2 + 3 * 0.1) + 0.3),
        ("cpu", 4, 4 * 2 * (3.0 / 2 + 3 * 0.1) + 0.3),
    ],
)
def test_one_device_alone(kind: str, threads: int, seconds: float) -> None:
    made = made_program(Local(), 2)
    costs = costs_of(made, {**times(1.0, 2.0), Kind.BATCH: 0.4}, threads=threads)
    cluster = ClusterDescription.model_validate(
        {"kind": kind, "nodes": 2, "devices": 4, "speed": 2.0, "overhead": 0.1}
    )
    assert alone(made, costs, cluster) == pytest.approx(seconds)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_no_more_speed_up_than_devices(kind: str, threads: int) -> None:
    made = made_program(Local(), 4)
    costs = costs_of(made, {**times(1.0, 2.0, 0.5), Kind.BATCH: 0.2}, threads=threads)
    cluster = ClusterDescription.model_validate({"kind": kind, "devices": 4, "overhead": 0.1})
    rate = simulate(made, costs, cluster, range(4), steps=60).steps_per_second
    speed_up = rate * alone(made, costs, cluster)
    # All blocks are at work all the time: on cores with what the threads can use of them.
    assert speed_up == pytest.approx(4.0, rel=0.07)


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
