"""Test accuracy of each rule on CIFAR-10, same network and budget, several seeds.

    python -m benchmarks.accuracy --train cifar10-train.parquet --test cifar10-test.parquet

Runs the sequential engine, whose weights equal the Ray engine's bit for bit (tests/orchestrator),
one thread a run and `--workers` runs at once. Finished runs are kept in the results file and not
repeated while the settings and the version of torch stay the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import records
from blocklocal.config import load_config
from blocklocal.preparation import prepare
from blocklocal.training import train
from orchestrator.version import code_version

CONFIGURATION = Path("examples/cifar10.yaml")
RULES: dict[str, tuple[str, ...]] = {
    "backprop": ("rule.kind=backprop",),
    "local, convolutional heads": ("rule.kind=local", "rule.head={kind: conv, grid: 2}"),
    "local, linear heads": ("rule.kind=local", "rule.head.kind=linear"),
    "BLL, Gaussian, convolutional readout": ("rule.latent.kind=gaussian",),
    "BLL, Gaussian, pooled readout": ("rule.latent.convolution=null",),
    "BLL, Bernoulli, pooled readout": (
        "rule.latent.convolution=null",
        "rule.latent.kind=bernoulli",
    ),
}
BLOCK = "block4"


def run_one(words: list[str]) -> dict[str, Any]:
    """Train one configuration in this process; returns its test accuracies and seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        location = f"run.directory={directory}/run"
        result = train(prepare(load_config(CONFIGURATION, [*words, location])))
    return {
        "settings": settings_of(words),
        "metrics": result.metrics,
        "seconds": time.perf_counter() - started,
        "code": code(code_version()),
    }


def code(version: dict[str, Any]) -> dict[str, Any]:
    """What of the code version is kept with each run: a file may hold runs of several."""
    return {name: version.get(name) for name in ("git_commit", "git_dirty", "torch")}


def settings_of(words: list[str]) -> dict[str, Any]:
    """All settings of a run but where its data lie."""
    config = load_config(CONFIGURATION, words)
    return config.model_dump(mode="json", exclude={"data": {"train", "test"}})


def finished_runs(file: Path) -> list[dict[str, Any]]:
    """The runs of a results file, each with its code version."""
    if not file.exists():
        return []
    record = json.loads(file.read_text())
    # Runs from before the version was kept with each are of the file's.
    return [{"code": code(record["environment"]["code"]), **run} for run in record["runs"]]


def in_a_process(words: list[str]) -> dict[str, Any]:
    """Run `run_one` in a process of its own, so that runs do not share threads."""
    command = [sys.executable, "-m", "benchmarks.accuracy", "--one", json.dumps(words)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def page(record: dict[str, Any]) -> str:
    """The table: mean, standard deviation and gap to backprop, in points."""
    by_rule: dict[str, list[float]] = {}
    for run in record["runs"]:
        accuracy = 100 * run["metrics"][f"test/{BLOCK}/accuracy"]
        by_rule.setdefault(run["rule"], []).append(accuracy)
    baseline = statistics.mean(by_rule["backprop"]) if "backprop" in by_rule else None
    lines = [
        "# Test accuracy on CIFAR-10",
        "",
        "First 20,000 training images, 5 epochs, batch 128, flips; a residual network of widths "
        "32/64/128/128, two residual blocks each, cut into 4 blocks; AdamW, one cycle; the full "
        "test set of 10,000 images. Settings: examples/cifar10.yaml.",
        "",
        "| rule | accuracy % | std | runs | gap to backprop |",
        "|---|---|---|---|---|",
    ]
    for rule, values in by_rule.items():
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        gap = "" if baseline is None else f"{statistics.mean(values) - baseline:+.2f}"
        lines.append(
            f"| {rule} | {statistics.mean(values):.2f} | {deviation:.2f} | {len(values)} | {gap} |"
        )
    environment = record["environment"]
    lines += ["", f"`{environment['command']}` on {environment['cores']} cores of "]
    lines[-1] += f"{environment['processor']}, torch {environment['code']['torch']}."
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(json.loads(arguments.one))))
        return
    if not (arguments.train and arguments.test):
        parser.error("--train and --test are needed: CIFAR-10 as Parquet files")
    common = [
        f"data.train={arguments.train}",
        f"data.test={arguments.test}",
        "engine.kind=sequential",
        "engine.resources.threads=1",
        "tracking.enabled=false",
    ]
    file = records.RESULTS / "accuracy.json"
    environment = records.environment()
    torch_version = environment["code"]["torch"]
    runs = [run for run in finished_runs(file) if run["code"]["torch"] == torch_version]
    done = [run["settings"] for run in runs]
    order = list(RULES)
    with ThreadPoolExecutor(arguments.workers) as pool:
        started: dict[Future[dict[str, Any]], dict[str, Any]] = {}
        for seed in range(arguments.seeds):
            for rule in RULES:
                words = [*common, *RULES[rule], f"training.seed={seed}"]
                if settings_of(words) not in done:
                    job = {"rule": rule, "seed": seed}
                    started[pool.submit(in_a_process, words)] = job
        try:
            # Only this thread touches the runs and the file.
            for future in as_completed(started):
                runs.append({**started[future], **future.result()})
                runs.sort(key=lambda run: (order.index(run["rule"]), run["seed"]))
                record = {"environment": environment, "runs": runs}
                records.write("accuracy", record, page(record))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
