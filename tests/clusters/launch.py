"""A program for tests: a cluster by `ray up`, a job on it, its results, and `ray down`.

    unshare ... python -m tests.clusters.launch
    unshare ... python -m tests.clusters.launch grow     a machine joins a run, and leaves it

Runs in namespaces of its own (machines.py), with the shipped file but for the number of machines.
Prints a line of JSON: what was said, and what is left on each machine at the end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
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
    """The shipped cluster, its first workers only, with this process as the laptop.

    Attributes:
        spare: the address of a machine that is in the shipped file, and not in the cluster.
    """

    def __init__(self, workers: int) -> None:
        text = SHIPPED.read_text()
        provider = yaml.safe_load(text)["provider"]
        named = provider["worker_ips"]
        self.head, self.workers, self.spare = provider["head_ip"], named[:workers], named[workers]
        self.machines = Machines([self.head, *named[: workers + 1]])
        line = f"worker_ips: [{', '.join(named)}]"
        assert text.count(line) == 1
        CLUSTER.write_text(text.replace(line, f"worker_ips: [{', '.join(self.workers)}]"))
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token")
        ray("get-auth-token", "--generate")
        self._tunnel: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Bring it up, and wait for the workers, which the head starts."""
        os.chdir(ROOT)  # file mounts are relative to it
        ray("up", "--yes", str(CLUSTER))
        until(self.is_whole, 90, "the workers do not join")

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

    def join(self, address: str) -> None:
        """Set up a machine that is not in the file, by the file's own commands, and start Ray."""
        config = yaml.safe_load(CLUSTER.read_text())
        key = "ssh -i ~/ray_bootstrap_key.pem -o StrictHostKeyChecking=no"
        files = f"rsync -a -e '{key}' .ray blocklocal {config['auth']['ssh_user']}@{address}:"
        self.machines.ssh(self.head, files)
        starts = [c.replace("$RAY_HEAD_IP", self.head) for c in config["worker_start_ray_commands"]]
        for command in [*config["setup_commands"], *starts]:
            self.machines.ssh(address, f"bash --login -c -i {shlex.quote(command)}")

    def changes(self) -> list[int]:
        """The numbers of lanes that the run has had since it began."""
        lines = self.machines.ssh(self.head, "cat ~/runs/first/changes.jsonl 2> /dev/null; true")
        return [json.loads(line)["lanes"] for line in lines.splitlines()]

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
    """Up, a run as a job, its files fetched, down."""
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

    launched = Launched(workers=1)
    lap("machines")
    launched.up()
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
    launched.down()
    lap("down")
    return {
        "seconds": seconds,
        "wrong": wrong[-1000:],
        "job": job[-3000:],
        "files": sorted(p.name for p in fetched.iterdir()),
        "state": json.loads((fetched / "state.json").read_text()),
        "left": launched.left(launched.head),
    }


def grow() -> dict[str, Any]:
    """A run with room for two lanes; a machine joins it and leaves it."""
    launched = Launched(workers=1)
    launched.up()
    launched.connect()
    words = "training.epochs=400 training.shards=4 lanes.max=2"
    launched.submit(*TRAIN.split(), *words.split(), wait=False)
    spans = "ls ~/runs/first/spans.jsonl 2> /dev/null; true"
    until(lambda: launched.machines.ssh(launched.head, spans) != "", 60, "no run")
    launched.join(launched.spare)
    until(lambda: 2 in launched.changes(), 60, "no second lane")
    launched.machines.ssh(launched.spare, "ray stop")
    until(lambda: launched.changes()[-1:] == [1], 90, "the lane stays")
    changes = launched.machines.ssh(launched.head, "cat ~/runs/first/changes.jsonl")
    launched.down()
    return {"changes": [json.loads(line) for line in changes.splitlines()]}


if __name__ == "__main__":
    print(json.dumps({"scene": scene, "grow": grow}[(sys.argv[1:] or ["scene"])[0]]()))
