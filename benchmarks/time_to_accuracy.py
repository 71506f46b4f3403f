"""Wall time to a fixed accuracy, or perplexity: every rule against backprop on the same cores.

    python -m benchmarks.time_to_accuracy --cifar-train train.parquet --cifar-test test.parquet \
        --text text.txt

The networks and settings of `examples/cifar10.yaml` and `examples/shakespeare.yaml`, cut into as
many blocks as `--blocks` says. Baselines are backprop in one process with a thread a core, and
backprop through the same actors.

Evaluation is not in the clock: every `--every` steps the state of all blocks is copied, and the
copies are evaluated after training on the first rows of the test set. The clock runs from the start
of the first operation to the end of the last block's update at a copy, so that starting processes
is not in it either (`benchmarks.start` has that). Learning rates follow one cycle over all steps.

A finished run is kept in a file beside the results; the same command goes on after the last one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import records
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config, read_tree
from blocklocal.preparation import Prepared, prepare
from learning.sequential import SequentialEngine
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Engine, SnapshotTaken, Worked
from orchestrator.inline import InlineEngine
from orchestrator.program import Calendar

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE_PROCESS = "backprop, one process"
CUTS = {"cifar10": {2: ["layer3"]}, "shakespeare": {2: ["block3"]}}
"""Where the networks of the examples are cut; into four blocks as the examples say."""
CONV = {"kind": "conv", "grid": 2}
HEAD = {"kind": "transformer"}
RULES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": {
        ONE_PROCESS: {"kind": "backprop"},
        "backprop": {"kind": "backprop"},
        "local": {"kind": "local", "head": CONV},
        "pairwise": {"kind": "interlocking", "reach": 2, "head": CONV},
        "3-wise": {"kind": "interlocking", "reach": 3, "head": CONV},
        "reconcile": {"kind": "reconcile", "weight": 0.3, "warmup": 1.0, "head": CONV},
        "bll": {
            "kind": "bll",
            "latent": {"convolution": 128},
            "feedback": {"optimizer": {"kind": "adamw", "lr": 0.0003}},
        },
    },
    "shakespeare": {
        ONE_PROCESS: {"kind": "backprop"},
        "backprop": {"kind": "backprop"},
        "local": {"kind": "local", "head": HEAD},
        "pairwise": {"kind": "interlocking", "reach": 2, "head": HEAD},
        "3-wise": {"kind": "interlocking", "reach": 3, "head": HEAD},
        "reconcile": {"kind": "reconcile", "head": HEAD},
        "bll": {"kind": "bll", "candidates": "batch"},
    },
}


@dataclass(frozen=True)
class Task:
    """One example: what to train on, how long, and what is reached when.

    Attributes:
        data: settings over the example's own.
        target: test accuracy, 0 to 1, or perplexity.
        falling: whether lower is better.
    """

    name: str
    data: dict[str, Any]
    steps: int
    every: int
    rows: int
    target: float
    falling: bool

    def reached(self, value: float) -> bool:
        """Whether a value is as good as the target."""
        return value <= self.target if self.falling else value >= self.target


def configuration(task: Task, name: str, blocks: int, seed: int) -> RunConfig:
    """The example's settings with another rule, cut, length and seed."""
    tree = read_tree(EXAMPLES / f"{task.name}.yaml")
    tree["data"] |= task.data
    tree["blocks"] = {"at": CUTS[task.name].get(blocks, tree["blocks"]["at"])}
    tree["rule"] = RULES[task.name][name]
    tree["training"] |= {"steps": task.steps, "seed": seed}
    threads = os.cpu_count() or 1
    if name == ONE_PROCESS:
        tree["engine"] = {"kind": "sequential", "resources": {"threads": threads}}
    else:
        tree["engine"] = {"resources": {"threads": max(1, threads // blocks)}}
    tree["tracking"] = {"enabled": False}
    return make_config(tree)


def engine_of(ready: Prepared) -> Engine:
    config, blocks = ready.config, ready.plan.units_of_blocks(ready.units)
    size = config.training.evaluation_batch
    if config.engine.kind == "sequential":
        return InlineEngine(
            ready.program, blocks, ready.batches, evaluation_batch=size, threads=ready.threads
        )
    return RayEngine(
        Chain(
            ready.program,
            ready.plan,
            blocks,
            config.data,
            config.data.augment,
            evaluation_batch=size,
            threads=ready.threads,
            window=config.engine.window,
            transport=config.engine.transport,
            source=ready.source,
        )
    )


def measure(task: Task, name: str, blocks: int, seed: int) -> dict[str, Any]:
    """Train once; seconds and value at each copy."""
    config = configuration(task, name, blocks, seed)
    with cluster(config):
        ready = prepare(config)
        copies = frozenset({*range(task.every - 1, task.steps, task.every), task.steps - 1})
        states: dict[int, dict[str, dict[str, Tensor]]] = {}
        first, ended = math.inf, dict[int, int]()
        engine = engine_of(ready)
        try:
            for event in engine.train(range(task.steps), Calendar(snapshots=copies)):
                if isinstance(event, SnapshotTaken):
                    states[event.step] = event.state
                elif isinstance(event, Worked):
                    for span in event.spans:
                        first = min(first, span.started + span.waited)
                        if span.kind == "U":
                            ended[span.step] = max(ended.get(span.step, 0), span.ended)
        finally:
            engine.close()
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    curve = [
        {"step": step + 1, "seconds": (ended[step] - first) / 1e9, "value": value}
        for step, value in _evaluated(ready, states, task)
    ]
    torch.set_num_threads(before)
    return {
        "curve": curve,
        "seconds_to_target": next((c["seconds"] for c in curve if task.reached(c["value"])), None),
        "steps_to_target": next((c["step"] for c in curve if task.reached(c["value"])), None),
        "steps_per_second": len(ended) / curve[-1]["seconds"],
    }


def _evaluated(
    ready: Prepared, states: dict[int, dict[str, dict[str, Tensor]]], task: Task
) -> Iterator[tuple[int, float]]:
    """Accuracy or perplexity of the last block after each step, on the first test rows."""
    engine = SequentialEngine(ready.program, ready.plan.units_of_blocks(ready.units))
    size = ready.config.training.evaluation_batch
    last = f"block{len(ready.plan.blocks)}"
    for step in sorted(states):
        engine.load_state_dict(states[step], step + 1)
        batches = islice(ready.batches.evaluation("test", size), math.ceil(task.rows / size))
        # The tables of the next step: a state holds what is still to be taken.
        metrics = engine.evaluate(step + 1, "test", batches)[last]
        yield step, math.exp(metrics["loss"]) if task.falling else metrics["accuracy"]


def rules_of(task: Task, blocks: int) -> list[str]:
    """The rules that are not backprop under another name: N-wise with N >= K is."""
    rules = RULES[task.name]
    return [name for name, rule in rules.items() if rule.get("reach", 1) < blocks]


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Wall time to a fixed accuracy",
        "",
        f"{record['blocks']} blocks, all processes together on "
        f"{record['environment']['cores']} cores; medians of {record['repeats']} interleaved "
        "repeats with seeds of their own (lowest to highest). Evaluations and the start of "
        "processes are not in the clock. N-wise rules with N of at least the number of blocks are "
        "backprop and are left out.",
    ]
    for name, task in record["tasks"].items():
        what = "perplexity" if task["falling"] else "accuracy"
        lines += [
            "",
            f"## {name}: {what} {task['target']:g}",
            "",
            f"| rule | seconds to {what} {task['target']:g} | against {ONE_PROCESS} | steps "
            f"| steps/s | best {what} in {task['steps']} steps |",
            "|---|---|---|---|---|---|",
        ]
        runs: dict[str, list[dict[str, Any]]] = {}
        for run in record["runs"]:
            if run["task"] == name:
                runs.setdefault(run["rule"], []).append(run)
        alone = {run["repeat"]: run for run in runs[ONE_PROCESS]}
        best = min if task["falling"] else max
        for rule, mine in runs.items():
            seconds = [r["seconds_to_target"] for r in mine]
            steps = [r["steps_to_target"] for r in mine]
            values = [best(c["value"] for c in r["curve"]) for r in mine]
            reached = None not in seconds
            pairs = [(r["seconds_to_target"], alone[r["repeat"]]) for r in mine]
            ratios = [s / a["seconds_to_target"] for s, a in pairs if a["seconds_to_target"] and s]
            cells = [
                _cell(seconds, 1) if reached else f"not by {sum(s is None for s in seconds)}",
                _cell(ratios, 2) if reached and ratios else "",
                _cell(steps, 0) if reached else "",
                _cell([r["steps_per_second"] for r in mine], 2),
                _cell(values, 3),
            ]
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    tasks = []
    if arguments.cifar_train and arguments.cifar_test:
        data = {"train": arguments.cifar_train, "test": arguments.cifar_test}
        data |= {"limit": arguments.cifar_limit, "test_limit": arguments.rows}
        steps, target = arguments.cifar_steps, arguments.accuracy
        tasks.append(Task("cifar10", data, steps, arguments.every, arguments.rows, target, False))
    if arguments.text:
        data = {"path": arguments.text, "test_limit": min(400, arguments.rows)}
        steps, target = arguments.text_steps, arguments.perplexity
        tasks.append(Task("shakespeare", data, steps, arguments.every, 400, target, True))
    return tasks


def _words(words: Sequence[str] | None) -> tuple[argparse.Namespace, list[Task]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar-train", help="Parquet file")
    parser.add_argument("--cifar-test", help="Parquet file")
    parser.add_argument("--text", help="text file")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=2, choices=[2, 4])
    parser.add_argument("--cifar-steps", type=int, default=400)
    parser.add_argument("--cifar-limit", type=int, default=20_000, help="training images")
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between copies")
    parser.add_argument("--rows", type=int, default=2000, help="of the test set")
    parser.add_argument("--accuracy", type=float, default=0.55)
    parser.add_argument("--perplexity", type=float, default=9.0)
    parser.add_argument("--rules", nargs="+", choices=list(RULES["cifar10"]), help="only these")
    arguments = parser.parse_args(words)
    tasks = _tasks(arguments)
    if not tasks:
        parser.error("there is nothing to train on: give --cifar-train and --cifar-test, or --text")
    return arguments, tasks


def main(words: Sequence[str] | None = None) -> None:
    arguments, tasks = _words(words)
    kept = records.RESULTS / "time_to_accuracy.runs.jsonl"
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    wanted = []
    for repeat in range(arguments.repeats):
        for task in tasks:
            for rule in rules_of(task, arguments.blocks):
                if not arguments.rules or rule in {ONE_PROCESS, *arguments.rules}:
                    wanted.append((task, rule, repeat))
    done = []
    for task, rule, repeat in wanted:
        label = {"task": task.name, "rule": rule, "repeat": repeat, "blocks": arguments.blocks}
        label["settings"] = json.loads(json.dumps(vars(task)))
        run = next((r for r in runs if label.items() <= r.items()), None)
        if run is None:
            run = label | measure(task, rule, arguments.blocks, seed=repeat)
            with kept.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(f"{task.name}, {rule}, {repeat}: {run['seconds_to_target']} s", flush=True)
        done.append(run)
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "blocks": arguments.blocks,
        "tasks": {task.name: vars(task) for task in tasks},
        "runs": done,
    }
    records.write("time_to_accuracy", record, page(record))
    kept.unlink()


if __name__ == "__main__":
    main()
