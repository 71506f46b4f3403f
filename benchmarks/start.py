"""From the command `blocklocal train` to the end of the first step, phase by phase.

    python -m benchmarks.start

Each repeat is a process of its own that runs the command on the digits, three blocks on a local
cluster that it starts itself. The benchmark puts clocks around the functions that the command
calls, in that process only. The first step ended when the last block's first update did, which is
read from the spans that the blocks left in the run directory. CPU seconds, of the driver and of
everything that it started, are those up to the first step; they vary less than wall times where
other work shares the cores.

A case with tracking connects to MLflow after its first step, and what that takes is not measured
here.

This file itself imports nothing heavy, because the watched process begins with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

TARGET_SECONDS = 5.0
ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "digits.yaml"
CASES = {
    "local": ["rule.kind=local"],
    "local, without tracking": ["rule.kind=local", "tracking.enabled=false"],
    "bll": ["rule.kind=bll"],
}
"""Settings of each case: four actors (source and blocks), the same, and two feedback modules."""


class Watch:
    """Unix times in nanoseconds by name, of one process."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {"interpreter": time.time_ns()}
        self.cpu: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Note the first time that something happened."""
        self.times.setdefault(name, time.time_ns())

    def around(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act` with marks before and after it."""

        @functools.wraps(act)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.mark(f"{name} begins")
            result = act(*arguments, **options)
            self.mark(f"{name} ends")
            return result

        return timed

    def stepped(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act`, an observer's method, with the CPU seconds at its first call."""

        @functools.wraps(act)
        def first(*arguments: Any, **options: Any) -> Any:
            if not self.cpu:
                self.cpu = cpu_seconds()
            return act(*arguments, **options)

        return first


def cpu_seconds() -> dict[str, float]:
    """User and system seconds so far of this process and of each kind of process below it."""
    import psutil

    me = psutil.Process()
    used = {"driver": sum(me.cpu_times()[:2])}
    for child in me.children(recursive=True):
        name = child.name() or "other"
        used[name] = used.get(name, 0.0) + sum(child.cpu_times()[:2])
    return used


def watched(marks: Path, words: Sequence[str]) -> int:
    """Run the command line in this process, and write what the clocks say."""
    watch = Watch()
    from blocklocal import clusters, launch

    start, load = clusters.local_cluster, launch.import_module

    @contextmanager
    def local_cluster() -> Iterator[None]:
        with ExitStack() as stack:
            watch.around("cluster", stack.enter_context)(start())
            yield

    def import_module(name: str) -> Any:
        watch.mark("imports begins")
        module = load(name)
        if name == "blocklocal.commands.train":  # and with it everything else
            _put_clocks(watch)
            watch.mark("imports ends")
        return module

    # Nobody else runs in this process: the clocks stay where they are put.
    for owner, name, clocked in (
        (clusters, "local_cluster", local_cluster),
        (launch, "import_module", import_module),
    ):
        setattr(owner, name, clocked)
    code = launch.main(list(words))
    marks.write_text(json.dumps({"times": watch.times, "cpu": watch.cpu}), encoding="utf-8")
    return code


def _put_clocks(watch: Watch) -> None:
    """Around what the command calls once everything is imported."""
    from blocklocal import preparation, training, under_way
    from blocklocal.commands import train
    from blocklocal.observers import Progress
    from orchestrator.rundir import RunDirectory

    for owner, name, clocked in (
        (train, "prepare", watch.around("prepare", train.prepare)),
        (preparation, "load_dataset", watch.around("data", preparation.load_dataset)),
        (training, "engine_of", watch.around("engine", training.engine_of)),
        (under_way, "check_place", watch.around("tracking", under_way.check_place)),
        (RunDirectory, "create", watch.around("directory", RunDirectory.create)),
        (Progress, "stepped", watch.stepped(Progress.stepped)),
    ):
        setattr(owner, name, clocked)


def run_once(directory: Path, name: str, words: Sequence[str]) -> dict[str, Any]:
    """Run the command in a new process; seconds by phase, seconds in all, CPU seconds.

    Raises:
        subprocess.CalledProcessError: when the command fails.
    """
    run, marks = directory / name, directory / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.start", "--watched", str(marks), "train"]
    command += [str(EXAMPLE), f"run.directory={run}", "training.steps=2", *words]
    started = time.time_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    watched = json.loads(marks.read_text(encoding="utf-8"))
    ended = 0
    for line in (run / "spans.jsonl").read_text(encoding="utf-8").splitlines():
        span = json.loads(line)
        if span["kind"] == "U" and span["step"] == 0:
            ended = max(ended, span["ended"])
    times = watched["times"]
    data = times["data ends"] - times["data begins"]
    nanoseconds = {
        "interpreter": times["interpreter"] - started,
        "Ray imported": times["cluster begins"] - times["interpreter"],
        "cluster start": times["cluster ends"] - times["cluster begins"],
        "imports left": max(0, times["imports ends"] - times["cluster ends"]),
        "loading data": data,
        "planning": times["prepare ends"] - times["prepare begins"] - data,
        "actors start": times["engine ends"] - times["engine begins"],
        "run directory": times["directory ends"] - times["directory begins"],
        "tracking": times["tracking ends"] - times["tracking begins"],
        "first step": ended - times["tracking ends"],
    }
    phases = {phase: value / 1e9 for phase, value in nanoseconds.items()}
    total = (ended - started) / 1e9
    phases["between"] = total - sum(phases.values())
    beside = {"imports": (times["imports ends"] - times["imports begins"]) / 1e9}
    return {"phases": phases, "beside": beside, "seconds": total, "cpu": watched["cpu"]}


def page(record: dict[str, Any]) -> str:
    """The Markdown page of a record."""
    cases = record["cases"]
    seconds = {name: [run["seconds"] for run in runs] for name, runs in cases.items()}
    lines = [
        "# From the command to the first step",
        "",
        f"`blocklocal train` on the digits, three blocks, on a local cluster that the command "
        f"starts; medians of {record['repeats']} interleaved repeats (lowest to highest), seconds. "
        f"Target: under {TARGET_SECONDS:g} s on two quiet cores.",
        "",
        "| phase | " + " | ".join(cases) + " |",
        "|---|" + "---|" * len(cases),
        "| **all, wall** | " + " | ".join(f"**{_cell(v)}**" for v in seconds.values()) + " |",
    ]
    for phase in next(iter(cases.values()))[0]["phases"]:
        cells = [_cell([run["phases"][phase] for run in runs]) for runs in cases.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    beside = [_cell([run["beside"]["imports"] for run in runs]) for runs in cases.values()]
    lines.append("| *imports, beside the cluster's start* | " + " | ".join(beside) + " |")
    lines += [
        "",
        "The phases follow one another and add up. Imports run beside the start of the cluster: "
        "what they take there is in the last line, which is not added, and `imports left` is how "
        "long the command still waited for them. MLflow is imported after the first step; "
        "`tracking` is the check of its place before it.",
        "",
        "CPU seconds, user and system, until the first step was reported:",
        "",
        "| process | " + " | ".join(cases) + " |",
        "|---|" + "---|" * len(cases),
    ]
    total = [_cell([sum(run["cpu"].values()) for run in runs]) for runs in cases.values()]
    lines.append("| **all** | " + " | ".join(f"**{cell}**" for cell in total) + " |")
    names = dict.fromkeys(name for runs in cases.values() for run in runs for name in run["cpu"])
    for name in names:
        cells = [_cell([run["cpu"].get(name, 0.0) for run in runs]) for runs in cases.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    from benchmarks import records

    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args(words)
    from benchmarks import records  # imports torch, which the watched process must not begin with

    cases: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.cases}
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(arguments.repeats):
            for i, name in enumerate(cases):
                cases[name].append(run_once(Path(directory), f"{i}-{repeat}", CASES[name]))
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "cases": cases,
    }
    records.write("start", record, page(record))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        sys.exit(watched(Path(sys.argv[2]), sys.argv[3:]))
    main()
