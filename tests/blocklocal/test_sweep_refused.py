"""What `blocklocal tune` refuses at once, and what it checks before."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from blocklocal.config import make_config
from blocklocal.sweep_checks import check_bundles, check_points, check_prepared, check_values
from blocklocal.sweep_file import SweepFile, varied
from blocklocal.sweep_runs import TrialRuns
from learning.errors import UserError
from tests.blocklocal.helpers import command, refused
from tests.blocklocal.sweeps import SMALL, write
from tests.orchestrator.engines import CPUS
from tuning.searchers import known_points

EXAMPLE = Path(__file__).parents[2] / "examples/sweep.yaml"
pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"space": {"optimizer.lrr": {"uniform": [0, 1]}}}, "did you mean optimizer.lr?"),
        ({"space": {"optimizer.lr": {"uniform": [1, 0.1]}}}, "its min 1 above its max 0.1"),
        ({"space": {"optimizer.lr": {"uniform": [-1, 0.1]}}}, "optimizer.lr = -1.0 is not possib"),
        ({"space": {"rule.kind": {"choice": ["local", "bl"]}}}, "rule.kind = 'bl' is unknown"),
        (
            {
                "space": {
                    "rule.kind": {"choice": ["local", "bll"]},
                    "rule.feedback.scale": {"uniform": [1, 2]},
                }
            },
            "space varies rule.feedback.scale, which rule.kind = local does not have: add when: ",
        ),
        ({"space": {"optimizer.lr[3]": {"uniform": [0, 1]}}}, "optimizer.lr has 2 entries where"),
        ({"space": {"network.kind[1]": {"choice": ["mlp"]}}}, "= 'mlp', which is no list"),
        ({"space": {"blocks.count": {"integer": [1, 2]}}}, "names where to cut: set blocks.at"),
        ({"sweep": {"metric": "validation/acc"}}, "does not exist: did you mean validation/acc"),
        ({"sweep": {"metric": "validation/block3/loss"}}, "a trial may have 2 blocks"),
        (
            {
                "rule": {"kind": "backprop"},
                "sweep": {"metric": "validation/block1/loss"},
            },
            "block 1, which has no loss of its own under rule.kind = backprop: use validation/acc",
        ),
        ({"sweep": {"trials": None}}, "sweep.trials is missing"),
        ({"sweep": {"trails": 3}}, "unknown setting sweep.trails: did you mean sweep.trials?"),
        ({"data": {"validation": 0}}, "data.validation = 0 leaves no rows to choose a trial by"),
        ({"data": {"kind": "arrays", "path": "none.npz"}}, "none.npz"),
        ({"lanes": {"max": 2}}, "lanes.max = 2 in a sweep is more than lanes.min = 1"),
        ({"engine": {"rebalance": 0.5}}, "engine.rebalance = 0.5 in a sweep"),
        ({"blocks": {"at": "auto", "balance": "time"}}, "would cut trials differently"),
        ({"blocks": {"at": "auto", "count": 9}}, "9"),
        (
            {"engine": {"kind": "ray", "resources": {"cpus": 3}}},
            "the plan does not fit the cluster: 2 blocks need 6 CPUs and 0 GPUs (3 and 0 on one",
        ),
        (
            {
                "engine": {"kind": "ray", "resources": {"gpus": 0.5}},
                "tracking": {"enabled": True, "uri": "sqlite:///made/too/early.db"},
            },
            "and 1 GPUs (",
        ),
        ({"tracking": {"enabled": True, "uri": "sqlite:////proc/x/y.db"}}, "cannot track with"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], sections: dict[str, Any], said: str
) -> None:
    tree = {**SMALL, "space": sections.pop("space", SMALL["space"])}
    path = write(tree, **sections)
    assert said in refused(capsys, "tune", path)


@pytest.mark.usefixtures("ray_cluster")
def test_a_server_that_is_no_mlflow_is_refused_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It answers, so that only MLflow's own client finds out, when the sweep has a directory."""

    class Other(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            uri = f"http://127.0.0.1:{server.server_port}"
            path = write(SMALL, tracking={"enabled": True, "uri": uri})
            assert f"cannot track with MLflow at {uri}" in refused(capsys, "tune", path)
        finally:
            server.shutdown()


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(SMALL)
    assert "needs a sweep file" in refused(capsys, "tune")
    assert "needs a sweep file" in refused(capsys, "tune", "optimizer.lr=1")
    assert "changes the space" in refused(capsys, "tune", path, "space.optimizer.lr=1")
    assert "--dry-run does not go with" in refused(capsys, "tune", "--resume", "x", "--dry-run")
    assert "is no sweep (no sweep.yaml)" in refused(capsys, "tune", "--resume", "there")
    assert "leave 'a=1' out" in refused(capsys, "tune", "a=1", "--resume", "there")
    Path("swept").mkdir()
    Path("swept/mine").touch()
    assert "exists and is not an empty directory" in refused(capsys, "tune", path)


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = write(SMALL, tracking={"enabled": True})
    said = command(capsys, "tune", path, "--dry-run", "sweep.trials=2", "training.batch=16")
    assert "batch: 16" in said
    assert said.count("trial 000") == 2
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["sweep.yaml"]


def test_the_example_is_right() -> None:
    file = SweepFile.read(EXAMPLE)
    points = known_points(file.settings, file.space)
    assert len(points) == 24
    checked = check_values(file)
    check_points(file, points.values())
    assert {c.rule.kind for _, c in checked} == {"local", "bll", "interlocking", "backprop"}
    length = check_prepared(checked[:1], file.settings.metric)
    assert length.steps > 3 * length.every


def test_values_are_laid_over_the_base_kinds_first_and_entries_last() -> None:
    base = make_config({"rule": {"kind": "local"}}).model_dump(mode="json")
    values = {"rule.feedback.kind": "direct", "optimizer.lr[2]": 0.5, "rule.kind": "bll"}
    config = varied(base, values).model_dump()
    assert config["rule"]["feedback"]["kind"] == "direct"
    assert config["optimizer"]["lr"] == (0.001, 0.5)


def test_a_trial_reserves_a_bundle_for_each_block_of_each_lane() -> None:
    def bundles(**engine: Any) -> list[dict[str, float]]:
        tree = {"engine": engine, "blocks": {"at": ["layer2", "layer3"]}}
        lanes = {"min": 2, "max": 2} if "lanes" in engine else {"min": 1, "max": 1}
        engine.pop("lanes", None)
        base = make_config({**tree, "lanes": lanes, "training": {"shards": 2}})
        return TrialRuns(base.model_dump(mode="json"), cpus=1.5, cores=1).bundles({})

    assert bundles() == [{}, *[{"CPU": 0.5}] * 3]
    assert bundles(lanes=2) == [{}, *[{"CPU": 0.25}] * 6]
    third = {"gpus": 1 / 3, "cpus": 1}
    assert bundles(resources=third) == [{}, *[{"CPU": 1.0, "GPU": 1 / 3}] * 3]
    assert bundles(kind="sequential", resources={"threads": 1}) == [{"CPU": 1.0}]


def test_a_trial_writes_on_the_node_of_the_sweep() -> None:
    """In a cluster of several: others may not see its directory."""
    base = make_config({"blocks": {"at": ["layer2"]}}).model_dump(mode="json")
    own, *blocks = TrialRuns(base, cpus=2, cores=1, node="10.0.0.1").bundles({})
    assert own == {"node:10.0.0.1": 0.001} and blocks == [{"CPU": 1.0}] * 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_fits_no_node_is_refused() -> None:
    base = make_config({"engine": {"resources": {"cpus": CPUS + 1}}, "blocks": {"at": []}})
    runs = TrialRuns(base.model_dump(mode="json"), cpus=CPUS, cores=1)
    with pytest.raises(UserError, match=rf"{CPUS + 1} CPUs and 0 GPUs.* nodes have {CPUS} and 0"):
        check_bundles(runs, [{}])
