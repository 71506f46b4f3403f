"""cluster.yaml on a stand-in of AWS: what the launcher makes there, and takes away.

The stand-in (moto) answers EC2's and IAM's calls: no machine starts, and no permission is
checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as launcher
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UNINITIALIZED,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

ROOT = Path(__file__).parents[2]
IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The shipped file as `ray up` hands it to the head, after its calls to an empty account."""
    home = tmp_path_factory.mktemp("aws")
    (home / ".ssh").mkdir()  # for the key that the launcher makes
    account = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**account, "AWS_DEFAULT_REGION": "us-west-2", "HOME": home}.items():
            patch.setenv(name, str(value))
        patch.delenv("AWS_PROFILE", raising=False)
        # The launcher gives AWS half a minute to tell all its parts of a new role.
        patch.setattr(launcher, "time", SimpleNamespace(sleep=lambda seconds: None))
        with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
            read = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
            filled = AWSNodeProvider.fillout_available_node_types_resources(read)
            validate_config(filled)
            yield AWSNodeProvider.bootstrap_config(filled)


def start(provider: AWSNodeProvider, config: dict[str, Any], name: str) -> None:
    """Start a node as the launcher and the autoscaler do."""
    kind = NODE_KIND_HEAD if name == "head" else NODE_KIND_WORKER
    tags = {
        TAG_RAY_NODE_KIND: kind,
        TAG_RAY_USER_NODE_TYPE: name,
        TAG_RAY_NODE_NAME: f"ray-blocklocal-{kind}",
        TAG_RAY_NODE_STATUS: STATUS_UNINITIALIZED,
        TAG_RAY_LAUNCH_CONFIG: "hash",
    }
    provider.create_node(config["available_node_types"][name]["node_config"], tags, 1)


def instances() -> list[dict[str, Any]]:
    found = boto3.client("ec2").describe_instances()["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def test_what_the_launcher_makes(config: dict[str, Any]) -> None:
    head, worker = (t["node_config"] for t in config["available_node_types"].values())
    profile = boto3.client("iam").get_instance_profile(InstanceProfileName="ray-autoscaler-v1")
    (role,) = profile["InstanceProfile"]["Roles"]
    # The role that the file's first lines give the right to look images up.
    assert role["RoleName"] == "ray-autoscaler-v1"
    assert config["head_node"]["IamInstanceProfile"]["Arn"] == profile["InstanceProfile"]["Arn"]
    assert "IamInstanceProfile" not in worker
    groups = boto3.client("ec2").describe_security_groups(GroupIds=worker["SecurityGroupIds"])
    opened = [p for g in groups["SecurityGroups"] for p in g["IpPermissions"]]
    worldwide = [p for p in opened if any(r["CidrIp"] == "0.0.0.0/0" for r in p["IpRanges"])]
    assert [p["FromPort"] for p in worldwide] == [22]
    keys = boto3.client("ec2").describe_key_pairs()["KeyPairs"]
    assert [key["KeyName"] for key in keys] == [head["KeyName"]] == [worker["KeyName"]]
    assert [p.name for p in (Path.home() / ".ssh").iterdir()] == [f"{head['KeyName']}.pem"]


def test_head_and_spot_workers_start_and_end(config: dict[str, Any]) -> None:
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name in ("head", "gpu-worker", "gpu-worker"):
        start(provider, config, name)
    assert {instance["ImageId"] for instance in instances()} == {f"resolve:ssm:{IMAGE}"}
    kinds = [(i["InstanceType"], i.get("InstanceLifecycle")) for i in instances()]
    assert sorted(kinds, key=str) == [("g5.xlarge", "spot")] * 2 + [("m5.xlarge", None)]
    nodes = provider.non_terminated_nodes({})
    assert len(nodes) == 3
    provider.terminate_nodes(nodes)
    assert {instance["State"]["Name"] for instance in instances()} == {"terminated"}
