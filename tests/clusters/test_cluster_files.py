"""The shipped cluster files: what Ray accepts, what the nodes run, and one version everywhere."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS, GCP = ROOT / "cluster.yaml", ROOT / "clusters/gcp.yaml"
MACHINES = ROOT / "clusters/machines.yaml"
LAUNCHED = [AWS, GCP, MACHINES]
KUBERNETES = sorted((ROOT / "clusters/kubernetes").glob("*.yaml"))
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
each = pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)


def shipped(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def pinned(package: str) -> str:
    """The version of a package that is tested."""
    found = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


# --- Ray's launcher ---------------------------------------------------------------------------


@each
def test_ray_accepts_the_file(file: Path) -> None:
    config = prepare_config(shipped(file))
    validate_config(config)
    if file == MACHINES:
        return
    head, worker = (config["available_node_types"][name] for name in ("head", "gpu-worker"))
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert worker["resources"]["GPU"] == 1
    assert 0 < worker["min_workers"] <= worker["max_workers"] <= config["max_workers"]


def test_ray_would_refuse_a_broken_one() -> None:
    config = shipped(AWS)
    del config["available_node_types"]["gpu-worker"]["resources"]
    with pytest.raises(ValidationError, match="resources"):
        validate_config(prepare_config(config))


@each
def test_every_node_uses_the_token(file: Path) -> None:
    config = shipped(file)
    for commands in STARTS:
        starts = [command for command in config[commands] if "ray start" in command]
        assert len(starts) == 1 and "RAY_AUTH_MODE=token" in starts[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@each
def test_the_dashboard_is_for_the_head_alone(file: Path) -> None:
    (start,) = [c for c in shipped(file)["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)


@each
def test_the_mounts_are_the_project_and_nothing_else(file: Path) -> None:
    """What is installed, and no data, runs or environment: Ray hashes all that lies below."""
    mounts = dict(shipped(file)["file_mounts"])
    del mounts["~/.ray/auth_token"]
    assert all(remote == f"~/blocklocal/{local}" for remote, local in mounts.items())
    packages = set(re.findall(r'^    "(\w+)",$', (ROOT / "pyproject.toml").read_text(), re.M))
    assert packages <= set(mounts.values()) and packages >= {"actors", "learning"}
    assert {"pyproject.toml", "constraints.txt", "README.md"} <= set(mounts.values())
    assert all((ROOT / local).exists() for local in mounts.values())
    size = sum(
        path.stat().st_size
        for local in mounts.values()
        for path in [ROOT / local, *(ROOT / local).rglob("*")]
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert size < 4 * 2**20


@each
def test_nodes_install_the_tested_versions(file: Path) -> None:
    config = shipped(file)
    installs = [
        command
        for section in ("setup_commands", "head_setup_commands")
        for command in config.get(section, [])
        if "pip install" in command
    ]
    assert installs
    assert all("--constraint ~/blocklocal/constraints.txt" in command for command in installs)


@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.stem)
def test_nodes_that_stop_cost_nothing(file: Path) -> None:
    assert shipped(file)["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.stem)
def test_all_nodes_have_the_same_system(file: Path) -> None:
    """Ray wants one Python, to the patch version, on all nodes."""
    head, worker = shipped(file)["available_node_types"].values()
    for key in ("ImageId", "BlockDeviceMappings", "disks"):
        assert head["node_config"].get(key) == worker["node_config"].get(key)


# --- a job ------------------------------------------------------------------------------------


def test_what_a_job_takes_along_is_small(tmp_path: Path) -> None:
    job = shipped(ROOT / "clusters/job.yaml")
    here = tmp_path / "here"
    for name in ("actors/a.py", ".git/objects/x", ".venv/lib/x", "runs/first/x", "data.parquet"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("x")
    package = tmp_path / "job.zip"
    assert job["working_dir"] == "."
    create_package(str(here), package, True, excludes=job["excludes"])
    assert {n for n in zipfile.ZipFile(package).namelist() if not n.endswith("/")} == {
        "actors/a.py"
    }
    whole = tmp_path / "whole.zip"
    create_package(str(ROOT), whole, True, excludes=job["excludes"])
    assert whole.stat().st_size < 4 * 2**20


# --- Kubernetes and the image -----------------------------------------------------------------


def test_the_image_has_the_tested_ray_and_the_whole_project() -> None:
    text = (ROOT / "clusters/Dockerfile").read_text()
    tags = re.findall(r"rayproject/ray:([\w.]+)-py311-(?:cpu|cu\d+)$", text, re.MULTILINE)
    assert tags and set(tags) == {pinned("ray")}
    copied = set(re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.MULTILINE))
    names = {name for group in copied for name in group.split()}
    mounts = set(shipped(AWS)["file_mounts"].values()) - {"~/.ray/auth_token"}
    assert names == mounts


def clusters_of(file: Path) -> list[dict[str, Any]]:
    """The specifications of Ray clusters in a manifest."""
    documents = list(yaml.safe_load_all(file.read_text()))
    found = [d["spec"] for d in documents if d["kind"] == "RayCluster"]
    return found + [d["spec"]["rayClusterSpec"] for d in documents if d["kind"] == "RayJob"]


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_manifests(file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text()):
        expected = {"PersistentVolumeClaim": "v1", "RayCluster": "ray.io/v1", "RayJob": "ray.io/v1"}
        assert document["apiVersion"] == expected[document["kind"]]
    (cluster,) = clusters_of(file)
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "blocklocal-token"}
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert 0 < workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pods = [group["template"]["spec"] for group in (head, workers)]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        # The same: Ray counts limits, Kubernetes places by requests.
        assert container["resources"]["requests"] == container["resources"]["limits"]
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers]
    assert gpus == [None, "1"]
    for pod in pods:
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_the_kubernetes_job_is_a_command_that_would_be_accepted() -> None:
    from blocklocal.config import load_config

    documents = yaml.safe_load_all((ROOT / "clusters/kubernetes/job.yaml").read_text())
    (job,) = [d["spec"] for d in documents if d["kind"] == "RayJob"]
    program, what, file, *words = job["entrypoint"].split()
    assert (program, what) == ("blocklocal", "train")
    config = load_config(ROOT / Path(file).relative_to("/home/ray/blocklocal"), words)
    assert config.engine.address == "auto"
    # The volume must be there, and an attempt that is repeated would find the first one's files.
    assert str(config.run.directory).startswith("/runs/") and job["backoffLimit"] == 0
