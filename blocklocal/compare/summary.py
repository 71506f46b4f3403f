"""The numbers of a report: means, deviations and gaps of the runs that there are."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from blocklocal.compare.records import Record
from blocklocal.compare.study import Combination, Key, Study
from learning.errors import UserError

Metric = Literal["accuracy", "perplexity"]


@dataclass(frozen=True)
class Row:
    """One rule in one table.

    Attributes:
        values: by seed, in percent for accuracy.
        gap: mean minus the baseline's mean, None without either.
        agreement: by block, mean over all evaluations of all runs; {} where not recorded.
        costs: as `Costs` has them, None where not measured.
    """

    rule: str
    values: dict[int, float]
    mean: float | None
    std: float | None
    gap: float | None
    agreement: dict[str, float]
    costs: dict[str, Any] | None


@dataclass(frozen=True)
class SummaryTable:
    """All rules on one network, cut in one way into `count` blocks."""

    network: str | None
    blocks: str | None
    count: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Summary:
    """What a report shows and results.json holds.

    Attributes:
        made: command, code and machine of runs, each once, with how many runs it holds for.
    """

    study: str
    title: str
    description: str | None
    metric: Metric
    split: str
    baseline: str
    tables: tuple[SummaryTable, ...]
    made: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return asdict(self)


def value_of(record: Mapping[str, Any], split: str, metric: Metric) -> float:
    """The number of a run: accuracy in percent, or perplexity, of the last block's output.

    Raises:
        UserError: when the run has no such number.
    """
    measured = "accuracy" if metric == "accuracy" else "loss"
    found = {
        int(match[1]): value
        for name, value in record["metrics"].items()
        if (match := re.fullmatch(rf"{split}/block(\d+)/{measured}", name))
    }
    if not found:
        raise UserError(
            f"a run has no {split} {measured}: choose another split, or data with {split} rows"
        )
    value = found[max(found)]
    if metric == "accuracy":
        return 100 * value
    try:
        return math.exp(value)  # losses of tokens are means over a sample's
    except OverflowError as error:
        raise UserError(
            f"a run has a {split} loss of {value:.4g}, whose perplexity is beyond all numbers: "
            "lower optimizer.lr, or compare the accuracy"
        ) from error


def metric_of(records: Sequence[Record], chosen: str) -> Metric:
    """The metric of a study: perplexity where a sample has a label at each of its tokens."""
    if chosen == "auto":
        return "perplexity" if any(r.get("labels", 1) > 1 for r in records) else "accuracy"
    return "accuracy" if chosen == "accuracy" else "perplexity"


def summarise(
    study: Study,
    combinations: Sequence[Combination],
    runs: Mapping[Key, Mapping[int, Record]],
    costs: Mapping[Key, Record],
) -> Summary:
    """Summarise the runs of a study.

    Args:
        runs: by combination and seed, those that there are.
        costs: by combination.
    """
    every = [run for of_one in runs.values() for run in of_one.values()]
    metric, split = metric_of(every, study.metric), study.split
    values = {
        c.key: {s: value_of(run, split, metric) for s, run in runs.get(c.key, {}).items()}
        for c in combinations
    }
    tables = []
    for network, blocks in dict.fromkeys((c.network, c.blocks) for c in combinations):
        group = [c for c in combinations if (c.network, c.blocks) == (network, blocks)]
        baseline = next(c for c in group if c.rule == study.baseline)
        of_baseline = list(values[baseline.key].values())
        level = statistics.mean(of_baseline) if of_baseline else None
        rows = tuple(
            _row(c.rule, values[c.key], runs.get(c.key, {}).values(), costs.get(c.key), level)
            for c in group
        )
        count = baseline.config(study.seeds[0]).blocks.count
        tables.append(SummaryTable(network, blocks, count, rows))
    return Summary(
        study=study.name,
        title=study.title or study.name,
        description=study.description,
        metric=metric,
        split=split,
        baseline=study.baseline,
        tables=tuple(tables),
        made=_made(every),
    )


def _row(
    rule: str,
    values: dict[int, float],
    runs: Iterable[Record],
    costs: Record | None,
    baseline: float | None,
) -> Row:
    mean = statistics.mean(values.values()) if values else None
    return Row(
        rule=rule,
        values=values,
        mean=mean,
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        gap=None if mean is None or baseline is None else mean - baseline,
        agreement=_agreement(runs),
        costs=None if costs is None else costs["costs"],
    )


def _agreement(runs: Iterable[Record]) -> dict[str, float]:
    by_block: dict[str, list[float]] = {}
    for run in runs:
        for row in run.get("curve", ()):
            for name, value in row.items():
                if match := re.fullmatch(r"train/(block\d+)/agreement", name):
                    by_block.setdefault(match[1], []).append(value)
    ordered = sorted(by_block.items(), key=lambda item: int(item[0].removeprefix("block")))
    return {block: statistics.mean(values) for block, values in ordered}


def _made(runs: Iterable[Record]) -> list[dict[str, Any]]:
    counts: dict[tuple[Any, ...], int] = {}
    for run in runs:
        code = run["code"]
        key = (
            run.get("command"),
            code.get("git_commit"),
            code.get("git_dirty"),
            code.get("torch"),
            run.get("processor"),
            run.get("cores"),
        )
        counts[key] = counts.get(key, 0) + 1
    names = ("command", "git_commit", "git_dirty", "torch", "processor", "cores")
    return [{**dict(zip(names, key, strict=True)), "runs": n} for key, n in counts.items()]
