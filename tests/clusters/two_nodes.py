"""A program for tests: the doctor of a cluster of two nodes, and of a run that is to go there.

Ray is told that one of them has a GPU.

Prints a line of JSON. A process of its own, because one can be connected to one cluster only.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile

import ray
from ray.cluster_utils import Cluster

from blocklocal import cli
from tests.blocklocal.helpers import SMALL


def main() -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        out = io.StringIO()
        with tempfile.TemporaryDirectory() as shared, contextlib.redirect_stdout(out):
            code = cli.main(["doctor", *map(str, SMALL), f"checkpoints.storage={shared}"])
        print(json.dumps({"code": code, "out": out.getvalue()}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main()
