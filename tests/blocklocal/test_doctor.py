"""The doctor: each check can fail, says what to do, and decides the exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray

from blocklocal import cli
from blocklocal.doctor import clocks, devices, examination, fit, memory, network, nodes, storage
from blocklocal.doctor.check import Check
from blocklocal.doctor.versions import Report, compare, report
from orchestrator.plan import BlockPlan, Plan
from tests.blocklocal.helpers import SMALL, command, only_sentence

Capture = pytest.CaptureFixture[str]
GIBI = 2**30
HERE = Report({"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}, 4 * GIBI)


def node(address: str = "10.0.0.1", **resources: float) -> nodes.Node:
    return nodes.Node("a" * 56, address, resources)


def plan(blocks: int = 3, cpus: float = 1.0) -> Plan:
    shapes = [(4,)] * (blocks + 1)
    return Plan(
        blocks=tuple(
            BlockPlan(
                index=i + 1,
                units=(f"unit{i}",),
                parameters=1,
                input_shape=shapes[i],
                output_shape=shapes[i + 1],
                boundary_bytes=1000,
                activation_bytes=1,
                cpus=cpus,
            )
            for i in range(blocks)
        )
    )


# --- one check at a time ----------------------------------------------------------------------


def test_a_finding_reads_as_a_line() -> None:
    assert str(Check("CPUs", True, "4", "never shown")) == "ok  4"
    assert str(Check("CPUs", False, "0", "start nodes")) == "FAILED  0: start nodes"
    assert str(Check("plan", False, "does not fit")) == "FAILED  does not fit"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"ray": "2.55.1"}, "ray 2.55.1 (here 2.60.0)"),
        ({"torch": None}, "torch is missing (here 2.13.0)"),
        ({"python": "3.12.3", "ray": "2.55.1"}, "python 3.12.3 (here 3.11.7), ray 2.55.1 (here"),
    ],
)
def test_another_version_on_a_node(there: dict[str, str | None], said: str) -> None:
    versions = {**HERE.versions, **there}
    found = compare("node 10.0.0.1", HERE, Report(versions, None))
    assert not found.ok and said in found.detail
    assert "pip install -c constraints.txt" in found.fix


def test_the_same_versions_on_a_node() -> None:
    found = compare("node 10.0.0.1", HERE, HERE)
    assert found == Check("node 10.0.0.1", True, "python 3.11.7, ray 2.60.0, torch 2.13.0")


def test_this_machine_reports_what_is_installed() -> None:
    said = report()
    assert said.versions["ray"] == ray.__version__
    assert said.versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_object_stores() -> None:
    store = node(object_store_memory=2 * GIBI)
    assert memory.check_store(store, HERE) == Check("object store 10.0.0.1", True, "2,048 MiB")
    small = memory.check_store(store, HERE._replace(shared_memory=64 * 2**20))
    assert not small.ok and "only 64 MiB in /dev/shm" in small.detail and "--shm-size" in small.fix
    busy = memory.check_store(store, HERE, needed=3 * GIBI)
    assert not busy.ok and busy.detail == "2,048 MiB of the 3,072 MiB needed"
    assert not memory.check_store(node(object_store_memory=2**20), HERE).ok
    assert memory.check_store(store, HERE._replace(shared_memory=None)).ok


def test_what_a_run_may_have_under_way() -> None:
    assert memory.bytes_under_way(plan(blocks=3), window=4, lanes=2) == 2 * 1000 * 4 * 2


def test_the_offset_of_a_clock_is_that_of_the_quickest_answer() -> None:
    slow, quick = clocks.Sample(0.0, 7.0, 4.0), clocks.Sample(10.0, 13.1, 10.2)
    found = clocks.offset([slow, quick])
    assert found.seconds == pytest.approx(3.0) and found.within == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("seconds", "within", "ok"),
    [(0.0, 0.0, True), (0.3, 0.25, True), (0.3, 0.1, False), (-0.3, 0.1, False)],
)
def test_a_clock_is_wrong_only_beyond_what_the_answers_took(
    seconds: float, within: float, ok: bool
) -> None:
    found = clocks.judge("clock 10.0.0.1", clocks.Offset(seconds, within))
    assert found.ok is ok and f"{seconds * 1000:+.1f} ms" in found.detail
    assert "chrony" in found.fix


def test_gpus() -> None:
    assert devices.judge("GPU a", 1, "H200") == Check("GPU a", True, "H200")
    assert devices.judge("GPU a", 8, "H200").detail == "H200, 8 of it"
    assert not devices.judge("GPU a", 8, None).ok


def test_slow_and_fast_links() -> None:
    fast = network.judge("link a to b", 16 * 2**20, 0.1)
    assert fast.ok and fast.detail == "160 MiB/s, messages of 16 MiB"
    slow = network.judge("link a to b", 16 * 2**20, 4.0)
    assert not slow.ok and "one network and zone" in slow.fix


# --- on a cluster of one node -----------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_doctor(capsys: Capture) -> None:
    out = command(capsys, "doctor", "--message", 3 * 2**20)
    (address,) = [n["NodeManagerAddress"] for n in ray.nodes()]
    assert "FAILED" not in out and out.endswith("everything is ok\n")
    for line in ("CPUs: ok  4", f"node {address}: ok", f"object store {address}: ok  512 MiB"):
        assert line in out
    assert f"clock {address}: ok" in out
    assert f"link within {address}: ok" in out and "messages of 3 MiB" in out
    assert "plan" not in out and "storage" not in out


@pytest.mark.usefixtures("ray_cluster")
def test_doctor_for_a_run(capsys: Capture, tmp_path: Path) -> None:
    where = tmp_path / "shared"
    out = command(capsys, "doctor", *SMALL, "engine.kind=ray", f"checkpoints.storage={where}")
    assert "plan: ok  2 blocks, 2 CPUs and 0 GPUs" in out
    assert f"storage here: ok  wrote {where}" in out
    assert "reads what was written here" in out
    assert list(where.iterdir()) == []  # nothing stays


@pytest.mark.usefixtures("ray_cluster")
def test_doctor_says_that_a_plan_does_not_fit(capsys: Capture) -> None:
    assert cli.main(["doctor", *SMALL, "engine.resources.cpus=3"]) == 1
    captured = capsys.readouterr()
    assert "plan: FAILED  the plan does not fit the cluster: 2 blocks need 6 CPUs" in captured.out
    assert captured.out.endswith("1 checks failed\n") and captured.err == ""


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = storage.check_storage(str(tmp_path / "file/below"), [])
    assert not found.ok and "cannot write" in found.detail


def test_storage_that_a_node_does_not_share(tmp_path: Path) -> None:
    assert "is not there" in (storage.attempt(str(tmp_path), "doctor-1") or "")
    (tmp_path / "doctor-1/probe").mkdir(parents=True)
    (tmp_path / "doctor-1" / storage.OURS).write_bytes(b"another run's")
    assert "something else" in (storage.attempt(str(tmp_path), "doctor-1") or "")
    (tmp_path / "doctor-1" / storage.OURS).write_bytes(storage.PROBE)
    assert storage.attempt(str(tmp_path), "doctor-1") is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_does_not_answer(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = nodes.Node("a" * 56, "10.0.0.9", {})
    monkeypatch.setattr(examination, "live_nodes", lambda: [*nodes.live_nodes(), gone])
    monkeypatch.setattr(nodes, "SECONDS", 10.0)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "node 10.0.0.9: FAILED" in out and "clock 10.0.0.9" not in out


@pytest.mark.usefixtures("ray_cluster")
def test_a_plan_in_several_lanes() -> None:
    assert fit.check_plan(plan(blocks=2), lanes=2).detail.endswith("in each of 2 lanes")
    assert not fit.check_plan(plan(blocks=2), lanes=3).ok


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--message", "0"], "--message = 0 is not possible: give 1 byte or more"),
        (["training.batch=none"], "training.batch"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_words(capsys: Capture, words: list[str], said: str) -> None:
    assert cli.main(["doctor", *words]) == 2
    captured = capsys.readouterr()
    assert said in only_sentence(captured.err) and captured.out == ""
