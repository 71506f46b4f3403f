"""Latency and bytes/s of one message between two actors, by transport and size.

    python -m benchmarks.hop

Two actors with the mailboxes and channels of our engine, and for comparison two plain processes
with a `multiprocessing.Pipe`, or with shared memory and tokens through a pipe. A message is one
float32 tensor in the sender's own memory; the receiver reads every number of it. Latency is half of
a round trip in which the answer is as large; bytes/s are those of a stream with `WINDOW` messages
under way.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import ray

from actors.shell import Change
from benchmarks import records
from benchmarks.crew import Crew
from benchmarks.echo import MAIL_THREADS, WINDOW, EchoShell, pings, sends, takes
from benchmarks.measuring import Repeat, Sample, interleaved, quietness, spread
from benchmarks.pipes import over_pipe, over_shared_memory
from blocklocal.clusters import cluster
from blocklocal.config import make_config
from orchestrator.settings import Transport

SIZES = (2**10, 2**14, 2**17, 2**20, 2**22, 2**24)  # bytes
WARMUP = 5  # messages before the clock starts
MOST, LEAST = 200, 30  # messages that are counted, of the smallest and of the largest
PEERS = {"pipe": over_pipe, "shared memory": over_shared_memory}
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


def messages_of(size: int) -> int:
    """How many messages of a size are counted."""
    return max(LEAST, min(MOST, 2**28 // size))


def between_actors(
    transport: Transport, sizes: Sequence[int], count: Callable[[int], int]
) -> Sample:
    """Both measurements over one transport; the actors end with it."""
    shell = ray.remote(concurrency_groups={"mail": MAIL_THREADS})(EchoShell)  # type: ignore[call-overload]
    # A share of a core: the cluster may have a single one.
    actors = {name: shell.options(num_cpus=0.1).remote() for name in ("near", "far")}
    try:
        _connect(actors, transport)
        found = {}
        for size in sizes:
            n = count(size)
            near, far = _run(actors, pings(size, WARMUP + n), takes(size, WARMUP + n, answer=True))
            trips = [(s.ended - s.started) / 1e9 for s in near.spans[WARMUP:]]
            near, far = _run(actors, sends(size, WARMUP + n), takes(size, WARMUP + n, answer=False))
            # From the moment that the last message of the warm-up was read.
            stream = (far.spans[-1].ended - far.spans[WARMUP - 1].ended) / 1e9
            found[str(size)] = figures(size, trips, stream)
        return _sample(found)
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _connect(actors: Mapping[str, Any], transport: Transport) -> None:
    """Channels in both directions: with a window there, as activations; without one back."""
    peers = dict(actors)
    if transport == "direct":
        secret = secrets.token_bytes(32)
        calls = [actor.listen.remote(name, secret, False) for name, actor in actors.items()]
        peers = {endpoint.name: endpoint for endpoint in ray.get(calls)}
    ray.get(
        [
            actors["near"].connect.remote(Change({"far": (peers["far"], WINDOW)})),
            actors["far"].connect.remote(Change({"near": (peers["near"], None)})),
        ]
    )


def _run(actors: Mapping[str, Any], near: Any, far: Any) -> list[Any]:
    return ray.get([actors["near"].run.remote(near), actors["far"].run.remote(far)])


def between_processes(
    crew: Crew, name: str, sizes: Sequence[int], count: Callable[[int], int]
) -> Sample:
    """Both measurements without Ray, over a way of `PEERS`."""
    found = {}
    for size in sizes:
        trips, stream = PEERS[name](crew, size, WARMUP, count(size), WINDOW)
        found[str(size)] = figures(size, trips, stream)
    return _sample(found)


def figures(size: int, trips: Sequence[float], stream: float) -> dict[str, float]:
    """Figures of one size.

    Args:
        trips: seconds of each round trip.
        stream: seconds of as many messages in a stream.
    """
    return {
        "latency_us": 1e6 * statistics.median(trips) / 2,
        "latency_90_us": 1e6 * float(np.percentile(trips, 90)) / 2,
        "bytes_per_second": size * len(trips) / stream,
    }


def _sample(found: dict[str, dict[str, float]]) -> Sample:
    """The rate that is shown while it runs is that of the largest messages."""
    return {"rate": list(found.values())[-1]["bytes_per_second"], "details": found}


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    repeats: list[Repeat] = record["repeats"]
    lines = [
        "# One message between two actors",
        "",
        f"Latency, µs: half of a round trip; medians (lowest to highest) of {len(repeats)} "
        "interleaved repeats, each of which is a median of many.",
        "",
        *_table(repeats, "latency_us", 1.0, 0),
        "",
        "The slowest tenth of the round trips takes longer than, µs:",
        "",
        *_table(repeats, "latency_90_us", 1.0, 0),
        "",
        f"MB/s of a stream with {WINDOW} messages under way:",
        "",
        *_table(repeats, "bytes_per_second", 1e-6, 1),
        "",
        "The transports carry tensors by key to a mailbox, from which the actor's program takes "
        "them; the pipe and the shared memory carry bytes. Everywhere the receiver reads every "
        "number once.",
        "",
        quietness(repeats),
        "",
        records.footer(record["environment"]),
    ]
    return "\n".join(lines) + "\n"


def _table(repeats: Sequence[Repeat], figure: str, scale: float, digits: int) -> list[str]:
    names = list(repeats[0]["samples"])
    rows = [f"| bytes | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for size in repeats[0]["samples"][names[0]]["details"]:
        cells = [
            spread([scale * r["samples"][n]["details"][size][figure] for r in repeats], digits)
            for n in names
        ]
        rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*TRANSPORTS, *PEERS], help="some of them")
    parser.add_argument("--quick", action="store_true", help="few messages, nothing is kept")
    parser.add_argument("--results", type=Path, help="another directory for the results")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    sizes, count = (SIZES[:3], lambda _: 3) if options.quick else (SIZES, messages_of)
    directory = options.results or (None if options.quick else records.RESULTS)
    with cluster(make_config({})), Crew(2) as crew:
        contenders: dict[str, Callable[[], Sample]] = {
            name: partial(between_actors, name, sizes, count) for name in TRANSPORTS
        }
        for name in PEERS:
            contenders[name] = partial(between_processes, crew, name, sizes, count)
        chosen = {n: c for n, c in contenders.items() if n in (options.only or contenders)}
        repeats = interleaved(chosen, options.repeats, partial(print, flush=True))
    record = {"environment": records.environment(), "window": WINDOW, "repeats": repeats}
    if directory is not None:
        records.write("hop", record, page(record), directory)
    else:
        print(page(record))


if __name__ == "__main__":
    main()
