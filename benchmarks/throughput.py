"""Steps/s of decoupled blocks against all that one would use instead.

    python -m benchmarks.throughput                    # all cases
    python -m benchmarks.throughput --only mlp-30ms    # one; the results of the others stay
    python -m benchmarks.throughput --quick            # tiny networks, to see that it works

K = 2 equal blocks on one machine, one thread each. Every case runs the ceiling (K processes that
never communicate), our engine with local learning over each transport, and one process with all
cores; some also run `torch.distributed.pipelining` in all its schedules, and backprop by our own
engine. What a case's name says of time is the length of a block's step on the machine on which the
cases were chosen; the page shows what it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks import peers, records
from benchmarks.crew import Crew, free_port
from benchmarks.measuring import Contenders, Sample, interleaved
from benchmarks.ours import run_engine
from benchmarks.throughput_page import (
    CEILING,
    backprop_name,
    one_process_name,
    ours_name,
    page,
    pipelining_name,
)
from benchmarks.workloads import Workload, configuration
from blocklocal.clusters import cluster
from orchestrator.settings import Transport

TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
THREADS = 2
SCHEDULES = (
    *(("GPipe", m) for m in (1, 2, 4, 8)),
    *(("1F1B", m) for m in (2, 4, 8)),  # it needs as many microbatches as blocks
)
ORDERS = (("gpipe", 2), ("1f1b", 2))  # of our engine's backprop, with its shards
WARMUP_SECONDS = 0.4
LEAST_WARMUP, LEAST_STEPS = 3, 4
CALIBRATION = (3, 5)  # steps of warm-up and steps, to find out how long a step is


@dataclass(frozen=True)
class Case:
    """A workload and who runs it, besides the ceiling and our engine."""

    workload: Workload
    all_of_one_process: bool = False
    schedules: Sequence[tuple[str, int]] = ()
    orders: Sequence[tuple[str, int]] = ()


SOME = (("GPipe", 1), ("1F1B", 2))
CASES = {
    "mlp-30ms": Case(Workload("mlp", 1024, 128), True, SCHEDULES, ORDERS),
    "mlp-100ms": Case(Workload("mlp", 1024, 512), False, SCHEDULES),
    "mlp-10ms": Case(Workload("mlp", 1024, 32)),
    "mlp-4ms": Case(Workload("mlp", 512, 64), False, SOME),
    "mlp-1ms": Case(Workload("mlp", 256, 32)),
    "message-1MB": Case(Workload("mlp", 1024, 32, spread=3)),
    "message-5MB": Case(Workload("mlp", 1024, 32, spread=6)),
    "message-16MB": Case(Workload("mlp", 1024, 32, spread=11)),
    "convnet": Case(Workload("conv", 32, 32), False, SOME),
    "gpt": Case(Workload("gpt", 192, 16, layers=1), False, SOME),
}
"""By name; the message of `mlp-10ms` has 0.1 MB, and the `message` cases repeat its numbers."""


@dataclass(frozen=True)
class Lengths:
    """How many steps a contender runs.

    Attributes:
        seconds: of counted steps at the ceiling's rate.
        step_seconds: of the ceiling.
    """

    seconds: float
    step_seconds: float

    def of(self, slower: float) -> tuple[int, int]:
        """Steps of warm-up and counted steps of a contender that is so many times slower."""
        each = self.step_seconds * slower
        warmup = max(LEAST_WARMUP, round(WARMUP_SECONDS / each))
        return warmup, max(LEAST_STEPS, round(self.seconds / each))


def measure(
    case: Case,
    *,
    repeats: int,
    seconds: float,
    transports: Sequence[Transport] = TRANSPORTS,
    watch: Callable[[str], None] = print,
) -> dict[str, Any]:
    """One case's record: the workload, how long it ran, and the raw repeats."""
    started = time.monotonic()
    with Crew(case.workload.blocks) as crew:
        warmup, steps = CALIBRATION
        took = max(crew.run(peers.block_alone, case.workload, warmup, steps))
        lengths = Lengths(seconds, took / steps)
        done = interleaved(contenders(case, crew, lengths, transports), repeats, watch)
    workload = case.workload
    return {
        "environment": records.environment(),
        "workload": {
            "kind": workload.kind,
            "width": workload.width,
            "batch": workload.batch,
            "layers": workload.layers,
            "blocks": workload.blocks,
            "message_bytes": workload.message_bytes,
        },
        "seconds": time.monotonic() - started,
        "repeats": done,
    }


def contenders(
    case: Case, crew: Crew, lengths: Lengths, transports: Sequence[Transport]
) -> Contenders:
    """All who run in a case, by the names that the page gives them."""
    workload = case.workload
    found: dict[str, Callable[[], Sample]] = {}
    warmup, steps = lengths.of(1)

    def ceiling() -> Sample:
        return _sample(steps, *crew.run(peers.block_alone, workload, warmup, steps))

    found[CEILING] = ceiling
    for transport in transports:
        found[ours_name(transport)] = partial(
            run_engine, workload, warmup, steps, transport=transport
        )
    threads = (1, THREADS) if case.all_of_one_process else (THREADS,)
    for number in threads:
        found[one_process_name("backprop", number)] = partial(
            _plain, crew, workload, number, lengths
        )
        if case.all_of_one_process:
            found[one_process_name("local", number)] = partial(
                _sequential, crew, workload, number, lengths
            )
    for schedule, microbatches in case.schedules:
        found[pipelining_name(schedule, microbatches)] = partial(
            _pipelined, crew, workload, schedule, microbatches, lengths
        )
    transport = transports[-1]  # the fast one: what backprop can reach here
    for order, shards in case.orders:
        found[backprop_name(order, shards, transport)] = partial(
            run_engine,
            workload,
            *lengths.of(2),
            transport=transport,
            rule="backprop",
            order=order,
            shards=shards,
        )
    return found


def _plain(crew: Crew, workload: Workload, threads: int, lengths: Lengths) -> Sample:
    warmup, steps = lengths.of(2 / threads)
    seconds, _ = crew.run_alone(peers.plain_backprop, workload, threads, warmup, steps)
    return _sample(steps, seconds)


def _sequential(crew: Crew, workload: Workload, threads: int, lengths: Lengths) -> Sample:
    warmup, steps = lengths.of(2 / threads)
    return _sample(steps, crew.run_alone(peers.sequential_local, workload, threads, warmup, steps))


def _pipelined(
    crew: Crew, workload: Workload, schedule: str, microbatches: int, lengths: Lengths
) -> Sample:
    warmup, steps = lengths.of(2.5)
    done = crew.run(peers.pipelined, workload, schedule, microbatches, free_port(), warmup, steps)
    return _sample(steps, *(seconds for seconds, _ in done))


def _sample(steps: int, *seconds: float) -> Sample:
    """The rate of processes that work together is that of the slowest."""
    return {"rate": steps / max(seconds), "details": {"seconds": list(seconds)}}


def tiny(case: Case) -> Case:
    """The same contenders on a network small enough for a test."""
    return Case(case.workload.tiny(), case.all_of_one_process, case.schedules, case.orders)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="of steps, a contender")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--quick", action="store_true", help="tiny networks, nothing is kept")
    parser.add_argument("--results", type=Path, help="another directory for the results")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.seconds <= 0:
        parser.error("--repeats must be at least 1 and --seconds above 0")
    repeats, seconds = (2, 0.05) if options.quick else (options.repeats, options.seconds)
    directory = options.results or (None if options.quick else records.RESULTS)
    measured: dict[str, Any] = {}
    with cluster(configuration(CASES["mlp-30ms"].workload, 1)):
        for name in options.only:
            case = tiny(CASES[name]) if options.quick else CASES[name]
            print(f"{name}:", flush=True)
            measured[name] = measure(
                case,
                repeats=repeats,
                seconds=seconds,
                transports=options.transports,
                watch=partial(print, flush=True),
            )
            # After each case: a long run that is broken off has not been for nothing.
            record = {"cases": _with_kept(directory, measured)}
            if directory is not None:
                records.write("throughput", record, page(record), directory)
    if directory is None:
        print(page({"cases": measured}))


def _with_kept(directory: Path | None, measured: dict[str, Any]) -> dict[str, Any]:
    """The cases measured now and, from the results that are there, the others, in their order."""
    path = directory / "throughput.json" if directory else None
    kept = json.loads(path.read_text())["cases"] if path and path.exists() else {}
    both = kept | measured
    return {name: both[name] for name in CASES if name in both}


if __name__ == "__main__":
    main()
