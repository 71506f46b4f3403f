"""The page of the throughput benchmark: targets beside what was measured, then every case."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import records
from benchmarks.measuring import Repeat, best, noise, quietness, rates, ratios, spread

CEILING = "ceiling: processes that never communicate"
EXPLAINED = ("mlp-30ms", "mlp-4ms")
"""Cases whose page says where the time goes."""
MEBI = 2**20


def ours_name(transport: str) -> str:
    """Our engine with local learning."""
    return f"blocklocal, local, {transport}"


def backprop_name(order: str, shards: int, transport: str) -> str:
    """Our engine with backprop in one of its orders."""
    return f"blocklocal, backprop, {order}, {shards} shards, {transport}"


def one_process_name(rule: str, threads: int) -> str:
    """One process without messages."""
    plural = "" if threads == 1 else "s"
    return f"one process, {rule}, {threads} thread{plural}"


def pipelining_name(schedule: str, microbatches: int) -> str:
    """`torch.distributed.pipelining` in one of its schedules."""
    plural = "" if microbatches == 1 else "es"
    return f"pipelining, {schedule}, {microbatches} microbatch{plural}"


@dataclass(frozen=True)
class Target:
    """At least so many times the rate of another program, in one case.

    Attributes:
        against: the start of the other's name; of several, the one with the best median counts.
    """

    case: str
    transport: str
    against: str
    least: float
    words: str


SHARE, PIPELINING, ONE = "of the ceiling", "of the best pipelining schedule", "of one process"
TWO_THREADS = one_process_name("backprop", 2)
TARGETS = (
    Target("mlp-30ms", "object_store", CEILING, 0.90, SHARE),
    Target("mlp-100ms", "object_store", CEILING, 0.95, SHARE),
    Target("mlp-4ms", "object_store", CEILING, 0.70, SHARE),
    Target("mlp-30ms", "direct", CEILING, 0.96, SHARE),
    Target("mlp-4ms", "direct", CEILING, 0.95, SHARE),
    Target("mlp-1ms", "direct", CEILING, 0.85, SHARE),
    Target("mlp-30ms", "object_store", "pipelining", 2.0, PIPELINING),
    Target("mlp-30ms", "direct", "pipelining", 2.0, PIPELINING),
    Target("mlp-100ms", "object_store", "pipelining", 1.7, PIPELINING),
    Target("mlp-100ms", "direct", "pipelining", 1.7, PIPELINING),
    Target("mlp-30ms", "object_store", TWO_THREADS, 1.0, f"{ONE}, 2 threads, backprop"),
    Target("mlp-30ms", "direct", TWO_THREADS, 1.0, f"{ONE}, 2 threads, backprop"),
)


def measured(
    target: Target, cases: Mapping[str, Any], program: str | None = None
) -> list[float] | None:
    """The ratios that a target is about, by repeat; None where the case was not run.

    Args:
        program: in the place of our engine.
    """
    if target.case not in cases:
        return None
    repeats, program = cases[target.case]["repeats"], program or ours_name(target.transport)
    others = [n for n in _names(repeats) if n.startswith(target.against)]
    if program not in _names(repeats) or not others:
        return None
    return ratios(repeats, program, best(repeats, others))


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    cases = record["cases"]
    blocks = max(case["workload"]["blocks"] for case in cases.values())
    lines = [
        "# Steps per second of decoupled blocks",
        "",
        f"{blocks} equal blocks, one thread each, on one machine. Ratios are of steps/s in the "
        "same repeat: the median, and in brackets the lowest and the highest.",
        "",
        *_targets(cases),
        "",
        "The last column is what K processes that never communicate come to by the same measure: "
        "no way to run blocks apart on these cores comes to more. "
        "The ceiling and all peers have their batches in memory; our engine makes its own in "
        "block 1. The ceiling's block-step is the time of a step without messages.",
        "",
        "## By grain and size of a message",
        "",
        *_sweep(cases),
    ]
    for name, case in cases.items():
        lines += ["", *_case(name, case)]
    return "\n".join(lines) + "\n"


def _targets(cases: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| local learning, transport | at | steps/s as a multiple | target | measured | reached | "
        "the ceiling |"
    )
    yield "|---|---|---|---|---|---|---|"
    for target in TARGETS:
        found = measured(target, cases)
        reached = "-"
        if found is not None:
            reached = "yes" if statistics.median(found) >= target.least else "no"
        yield (
            f"| {target.transport} | {target.case} | {target.words} | {target.least:.2f} | "
            f"{'not run' if found is None else spread(found)} | {reached} | "
            f"{_ceiling(target, cases)} |"
        )


def _ceiling(target: Target, cases: Mapping[str, Any]) -> str:
    """What the ceiling comes to by a target's measure."""
    found = None if target.against == CEILING else measured(target, cases, CEILING)
    return "1.00" if target.against == CEILING else "-" if found is None else spread(found)


def _sweep(cases: Mapping[str, Any]) -> Iterator[str]:
    transports = [t for t in ("object_store", "direct") if _has(cases, ours_name(t))]
    shares = " | ".join(f"share of the ceiling, {t}" for t in transports)
    yield f"| case | block-step, ms | message, MiB | {shares} |"
    yield "|---|---|---|" + "---|" * len(transports)
    for name, case in sorted(cases.items(), key=lambda item: _step_ms(item[1])):
        repeats = case["repeats"]
        cells = [
            spread(ratios(repeats, ours_name(t), CEILING))
            if ours_name(t) in _names(repeats)
            else "-"
            for t in transports
        ]
        size = case["workload"]["message_bytes"] / MEBI
        yield f"| {name} | {_step_ms(case):.2f} | {size:.2f} | {' | '.join(cells)} |"


def _case(name: str, case: Mapping[str, Any]) -> Iterator[str]:
    work, repeats = case["workload"], case["repeats"]
    yield f"## {name}"
    yield ""
    yield (
        f"{work['blocks']} blocks of {work['layers']} layers ({work['kind']}, width "
        f"{work['width']}), batch {work['batch']}, messages of "
        f"{work['message_bytes'] / MEBI:.2f} MiB; {len(repeats)} interleaved repeats."
    )
    yield ""
    yield "| program | steps/s | lowest | highest | noise | of the ceiling |"
    yield "|---|---|---|---|---|---|"
    for program in _names(repeats):
        values = rates(repeats, program)
        yield (
            f"| {program} | {statistics.median(values):.2f} | {min(values):.2f} | "
            f"{max(values):.2f} | ±{100 * noise(values):.0f} % | "
            f"{spread(ratios(repeats, program, CEILING))} |"
        )
    if name in EXPLAINED:
        for transport in ("object_store", "direct"):
            if ours_name(transport) in _names(repeats):
                yield from _where(transport, case)
    yield ""
    yield quietness(repeats)
    yield ""
    yield records.footer(case["environment"])


def _where(transport: str, case: Mapping[str, Any]) -> Iterator[str]:
    """Where a block-step's time goes, and the CPU time by process."""
    details = [r["samples"][ours_name(transport)]["details"] for r in case["repeats"]]
    parts = list(details[0]["blocks"]["block1"])
    yield ""
    yield f"Where a block's step goes over {transport}, ms (the ceiling's: {_step_ms(case):.2f}):"
    yield ""
    yield "| block | " + " | ".join(part.removesuffix("_ms") for part in parts) + " |"
    yield "|---|" + "---|" * len(parts)
    for block in details[0]["blocks"]:
        cells = (_median(d["blocks"][block][part] for d in details) for part in parts)
        yield f"| {block} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    names = sorted({name for d in details for name in d["cpu_ms_a_step"]})
    used = {n: _median(d["cpu_ms_a_step"].get(n, 0.0) for d in details) for n in names}
    shown = ", ".join(f"{name} {ms:.2f}" for name, ms in used.items() if ms >= 0.05)
    if shown:
        yield ""
        yield f"CPU time a step by process, ms, from 0.05: {shown}."


def _median(values: Iterator[float]) -> float:
    return statistics.median(values)


def _step_ms(case: Mapping[str, Any]) -> float:
    return 1000 / statistics.median(rates(case["repeats"], CEILING))


def _names(repeats: Sequence[Repeat]) -> list[str]:
    return list(repeats[0]["samples"])


def _has(cases: Mapping[str, Any], program: str) -> bool:
    return any(program in _names(case["repeats"]) for case in cases.values())
