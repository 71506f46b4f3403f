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

NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.2"}
"""On the loopback, by an address that Ray does not take for this machine's name for itself."""


def main() -> None:
    head = {**NODE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE, num_gpus=1)
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
