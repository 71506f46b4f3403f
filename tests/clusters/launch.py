"""A program for tests: a cluster by `ray up`, a job on it, its results, and `ray down`.

    unshare ... python -m tests.clusters.launch

Runs in namespaces of its own (machines.py), with the shipped file and a number of workers.
Prints a line of JSON: what was said, and what is left on each machine at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import yaml

from tests.clusters.machines import HOME, ROOT, Machines, answers, run, until

RAY = (sys.executable, "-m", "ray.scripts.scripts")
SHIPPED = ROOT / "clusters/machines.yaml"
CLUSTER = HOME / "machines.yaml"
JOBS = "http://127.0.0.1:8265"
TRAIN = "blocklocal train examples/digits.yaml engine.address=auto run.directory=~/runs/first"
# Little work, because all machines share the cores of this one, and without an end but `ray down`.
GROWING = (
    "blocklocal train examples/digits.yaml engine.address=auto run.directory=~/runs/grown "
    "rule.kind=backprop blocks.at=[layer2] training.epochs=100000 training.shards=2 lanes.max=2"
)


def ray(*words: str) -> str:
    """What the Ray command says, on both streams, when it succeeds."""
    return run("sh", "-c", 'exec "$@" 2>&1', "sh", *RAY, *words)


def refused(*words: str, **environment: str) -> str:
    """What the Ray command says when it fails."""
    everything = {**os.environ, **environment}
    done = subprocess.run([*RAY, *words], env=everything, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


class Launched:
    """The shipped cluster, with this process as the laptop."""

    def __init__(self) -> None:
        provider = yaml.safe_load(SHIPPED.read_text())["provider"]
        self.head, self.workers = provider["head_ip"], provider["worker_ips"]
        self.machines = Machines([self.head, *self.workers])
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token")
        ray("get-auth-token", "--generate")
        self._tunnel: subprocess.Popen[bytes] | None = None

    def up(self, workers: int, *options: str) -> None:
        """Bring it up with so many of its workers; with `--no-restart`, while it works."""
        os.chdir(ROOT)  # file mounts are relative to it
        few = f"\nmin_workers: {workers}\nmax_workers: {workers}\n"
        CLUSTER.write_text(SHIPPED.read_text() + few)
        ray("up", "--yes", *options, str(CLUSTER))

    def is_whole(self) -> bool:
        """Whether all workers have joined: a run is refused where its plan does not fit yet."""
        said = self.machines.ssh(self.head, "ray status; true")
        return "(no pending nodes)" in said and re.search(r"/[1-9][.\d]* CPU", said) is not None

    def connect(self) -> None:
        """Forward the port of jobs, as the user does."""
        self._tunnel = subprocess.Popen(
            [*RAY, "dashboard", str(CLUSTER)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: answers("127.0.0.1", 8265), 60, "no dashboard")

    def submit(self, *words: str, wait: bool = True) -> str:
        """The log of a job that must succeed; or only that it was taken."""
        what = ["--address", JOBS, "--runtime-env", "clusters/job.yaml"]
        return ray("job", "submit", *what, *([] if wait else ["--no-wait"]), "--", *words)

    def lines(self, path: str) -> list[dict[str, Any]]:
        """What a run has written there on the head until now, one line of JSON each."""
        said = self.machines.ssh(self.head, f"cat ~/runs/{path} 2> /dev/null; true")
        return [json.loads(line) for line in said.splitlines()]

    def spans(self, run: str) -> int:
        """The bytes of the record of a run's operations; 0 before there is one."""
        size = f"stat -c %s ~/runs/{run}/spans.jsonl 2> /dev/null; true"
        return int(self.machines.ssh(self.head, size) or 0)

    def down(self) -> None:
        """Take it down."""
        if self._tunnel is not None:
            self._tunnel.terminate()
            self._tunnel.wait()
        ray("down", "--yes", str(CLUSTER))

    def left(self, address: str) -> list[str]:
        """Ray's processes on a machine."""
        names = self.machines.ssh(address, "ps -eo comm,args").splitlines()
        return [name for name in names if "raylet" in name or "gcs_server" in name]


def scene() -> dict[str, Any]:
    """Up, a run as a job, its files fetched; a run that a machine joins and leaves; down."""
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

    launched = Launched()
    lap("machines")
    launched.up(1)
    until(launched.is_whole, 90, "the worker does not join")
    lap("up")
    launched.connect()
    lap("connect")
    wrong = refused("job", "list", "--address", JOBS, RAY_AUTH_TOKEN="another")
    lap("refusal")
    job = launched.submit(*TRAIN.split(), "training.epochs=2")
    lap("job")
    fetched = HOME / "fetched"
    ray("rsync-down", str(CLUSTER), "~/runs/first/", str(fetched))
    lap("fetch")
    launched.submit(*GROWING.split(), wait=False)
    until(lambda: launched.spans("grown") > 0, 60, "no run")
    lap("second job")
    launched.up(2, "--no-restart")
    lap("second up")
    until(lambda: launched.lines("grown/changes.jsonl") != [], 180, "no second lane")
    lap("growth")
    launched.up(1, "--no-restart")
    until(lambda: launched.lines("grown/incidents.jsonl") != [], 180, "no machine left")
    lap("shrinking")
    spans = launched.spans("grown")
    until(lambda: launched.spans("grown") > spans, 60, "no step with the machine that is left")
    changes, incidents = map(launched.lines, ("grown/changes.jsonl", "grown/incidents.jsonl"))
    lap("a step")
    launched.down()
    lap("down")
    return {
        "seconds": seconds,
        "wrong": wrong[-1000:],
        "job": job[-3000:],
        "files": sorted(p.name for p in fetched.iterdir()),
        "state": json.loads((fetched / "state.json").read_text()),
        "changes": changes,
        "incidents": incidents,
        "left": launched.left(launched.head),
    }


if __name__ == "__main__":
    print(json.dumps(scene()))
