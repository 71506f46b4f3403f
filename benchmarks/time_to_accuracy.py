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
from collections.abc import Sequence

from benchmarks import records
from benchmarks.time_to_accuracy_page import page
from benchmarks.time_to_accuracy_runs import measure
from benchmarks.time_to_accuracy_tasks import ONE_PROCESS, RULES, Task, rules_of


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
