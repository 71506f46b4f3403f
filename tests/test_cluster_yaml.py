"""The shipped cluster file is one that Ray accepts."""

from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


def shipped() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file():
    config = prepare_config(shipped())
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert config["available_node_types"]["gpu-worker"]["resources"]["GPU"] == 1


def test_ray_would_refuse_a_broken_one():
    config = shipped()
    del config["available_node_types"]["gpu-worker"]["resources"]
    with pytest.raises(ValidationError, match="resources"):
        validate_config(prepare_config(config))


def test_every_node_uses_the_token():
    config = shipped()
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[commands] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
