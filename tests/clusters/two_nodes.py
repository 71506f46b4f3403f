"""A program for tests: what needs a cluster of two nodes, of the second of which Ray is told that
it has a GPU.

Prints a line of JSON. A process of its own, because one can be connected to one cluster only.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster
from torch import nn

from blocklocal import cli
from tests.blocklocal.helpers import SMALL
from tests.prefork import forked_workers

HEAD, OTHER = ({"num_cpus": 1, "node_ip_address": f"127.0.0.{n}"} for n in (2, 3))
"""On the loopback, by addresses that Ray does not take for this machine's name for itself."""


def main() -> None:
    with tempfile.TemporaryDirectory() as home, forked_workers(Path(home)):
        cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "include_dashboard": False})
        try:
            cluster.add_node(**OTHER, num_gpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            print(json.dumps({"doctor": doctor(), "sweep": sweep()}))
        finally:
            ray.shutdown()
            cluster.shutdown()


def doctor() -> dict[str, Any]:
    """Of the cluster, and of a run that is to go there."""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as shared, contextlib.redirect_stdout(out):
        code = cli.main(["doctor", *map(str, SMALL), f"checkpoints.storage={shared}"])
    return {"code": code, "out": out.getvalue()}


def sweep() -> dict[str, Any]:
    """Two trials at once, each of which takes all CPUs of a node."""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(out):
        here = Path(directory)
        arguments = {"directory": str(here)}
        factory = "tests.clusters.two_nodes:build"
        tree = {
            "network": {"kind": "custom", "factory": factory, "arguments": arguments},
            "blocks": {"at": []},
            "engine": {"resources": {"cpus": 1, "threads": 1}},
            "tracking": {"enabled": False},
            "training": {"steps": 4, "evaluate_every": 4},
            "sweep": {"parallel": 2, "directory": str(here / "swept")},
            "space": {"optimizer.lr": {"grid": [0.01, 0.02]}},
        }
        (here / "sweep.yaml").write_text(yaml.safe_dump(tree))
        code = cli.main(["tune", str(here / "sweep.yaml")])
        with (here / "swept/trials.csv").open() as table:
            rows = list(csv.DictReader(table))
        return {
            "code": code,
            "out": out.getvalue(),
            "trials": [[row["status"], row["why"]] for row in rows],
            "wrote on": sorted({path.read_text() for path in here.glob("*.node")}),
            "driver on": ray.get_runtime_context().get_node_id(),
        }


def build(directory: str) -> nn.Sequential:
    """A network, which says on which node the process of a trial is."""
    if threading.current_thread().name == "trial":
        node = ray.get_runtime_context().get_node_id()
        (Path(directory) / f"{uuid.uuid4().hex}.node").write_text(node)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main()
