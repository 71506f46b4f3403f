"""What a sweep takes, that its best trial can be repeated, and that a population gets better.

    python -m benchmarks.sweep asha     # examples/sweep.yaml, then its best.yaml
    python -m benchmarks.sweep pbt      # a population, and the same one without takeovers

Each part writes a page of its own. Commands run in processes of their own, in a directory that is
kept only with --keep.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import records
from orchestrator.rundir import RunDirectory

EXAMPLE = Path(__file__).parents[1] / "examples/sweep.yaml"
LIMIT_SECONDS = 360.0
"""A sweep of 24 trials, two at a time on two cores, is to take less."""
POPULATION: dict[str, Any] = {
    "run": {"name": "population"},
    "network": {"kind": "mlp", "widths": [64, 64]},
    "blocks": {"at": ["layer2"]},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "training": {"steps": 240, "batch": 64, "evaluate_every": 40},
    "tracking": {"enabled": False},
    "sweep": {"trials": 6, "parallel": 2, "metric": "validation/loss"},
    "space": {"optimizer.lr": {"loguniform": [1e-5, 0.1]}},
}
TAKEOVERS = {"kind": "pbt", "mutate": ["optimizer.lr"], "quantile": 0.34}


def command(here: Path, *words: str) -> float:
    """Run `blocklocal`; returns its seconds.

    Raises:
        CalledProcessError: when it fails.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "blocklocal.cli", *words], cwd=here, check=True)
    return time.monotonic() - began


def rows(sweep: Path) -> list[dict[str, str]]:
    """The table of a sweep."""
    with (sweep / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_bits(a: RunDirectory, b: RunDirectory) -> bool:
    """Whether two runs have the same tensors in their last checkpoints, and the same metrics."""
    last = a.checkpoints.last
    if last is None or last != b.checkpoints.last or a.read_metrics() != b.read_metrics():
        return False
    left, right = (run.checkpoints.load(last).state for run in (a, b))
    return left.keys() == right.keys() and all(
        left[learner].keys() == right[learner].keys()
        and all(torch.equal(t, right[learner][name]) for name, t in left[learner].items())
        for learner in left
    )


def asha(here: Path) -> None:
    """The example, its time, and its best trial again."""
    seconds = command(here, "tune", str(EXAMPLE), "sweep.directory=swept")
    trials = rows(here / "swept")
    best = int((here / "swept/best.yaml").read_text().split()[2].rstrip(":"))
    again = command(here, "train", "swept/best.yaml", "run.directory=again")
    run = RunDirectory.open(here / "swept/trials" / trials[best]["run"])
    same = same_bits(run, RunDirectory.open(here / "again"))
    steps = sum(int(trial["steps"]) for trial in trials)
    record = {
        "trials": trials,
        "seconds": seconds,
        "steps": steps,
        "best": best,
        "again_seconds": again,
        "same_bits": same,
        "environment": records.environment(),
    }
    counts = Counter(trial["status"] for trial in trials)
    lines = [
        "# A sweep of 24 trials",
        "",
        "`examples/sweep.yaml`: rule, learning rate, number of blocks and feedback on the digits, "
        "successive halving, two trials at a time; blocks are actors, MLflow records all trials.",
        "",
        "| trials | status | steps of all trials | seconds | target | reached | seconds a trial |",
        "|---|---|---|---|---|---|---|",
        f"| {len(trials)} | {', '.join(f'{n} {s}' for s, n in sorted(counts.items()))} | {steps} "
        f"| {seconds:.0f} | {LIMIT_SECONDS:.0f} | {'yes' if seconds < LIMIT_SECONDS else 'no'} "
        f"| {seconds / len(trials):.1f} |",
        "",
        f"The best, trial {best}, has a validation accuracy of "
        f"{float(trials[best]['validation/accuracy']):.4f}. `blocklocal train best.yaml` took "
        f"{again:.0f} s; weights, optimizer states and metrics are "
        f"{'the same to the bit' if same else 'DIFFERENT'}.",
        "",
        records.footer(record["environment"]),
    ]
    records.write("sweep", record, "\n".join(lines) + "\n")


def pbt(here: Path) -> None:
    """A population that takes over from its best, and the same rates without that."""
    last: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for name, scheduler in (("alone", {"kind": "none"}), ("takeovers", TAKEOVERS)):
        tree = {**POPULATION, "sweep": {**POPULATION["sweep"], "scheduler": scheduler}}
        (here / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        seconds[name] = command(here, "tune", f"{name}.yaml", f"sweep.directory={name}")
        last[name] = [float(row["validation/loss"]) for row in rows(here / name)]
    taken = sum("-from-" in row["run"] for row in rows(here / "takeovers"))
    record = {"last": last, "seconds": seconds, "environment": records.environment()}
    lines = [
        "# Population based training",
        "",
        "Six trials on the digits, two blocks, SGD with learning rates from 1e-5 to 0.1; every 40 "
        "of 240 steps the worst two take over weights and optimizer states of the best two. "
        "Validation loss at the end.",
        "",
        "| population | best | median | worst | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, losses in last.items():
        told = (min(losses), statistics.median(losses), max(losses))
        lines.append(f"| {name} | {' | '.join(f'{x:.4f}' for x in told)} | {seconds[name]:.0f} |")
    lines += ["", f"{taken} of 6 trials ended with weights that they had taken over.", ""]
    lines.append(records.footer(record["environment"]))
    records.write("population", record, "\n".join(lines) + "\n")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["asha", "pbt"])
    parser.add_argument("--keep", type=Path, help="directory in which to work; new or empty")
    options = parser.parse_args()
    part = asha if options.part == "asha" else pbt
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        part(options.keep)
        return
    with tempfile.TemporaryDirectory() as directory:
        part(Path(directory))


if __name__ == "__main__":
    main()
